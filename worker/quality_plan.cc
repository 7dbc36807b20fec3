// Cutting windows and planting facts.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/quality_plan.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"

namespace kvpool {
namespace {

// The words that the model of worker/models/prose-5m was taught facts with.
constexpr std::array kThings = {"number", "key", "cipher", "ticket", "seal", "ledger", "locker"};
constexpr std::array kNames = {"Arthur", "Beatrice", "Clement", "Dorothea", "Edmund",  "Flora",
                               "George", "Harriet",  "Isaac",   "Julia",    "Kenneth", "Lydia",
                               "Martin", "Nora",     "Oliver",  "Phoebe",   "Quentin", "Rosamond",
                               "Silas",  "Teresa",   "Ursula",  "Victor",   "Walter",  "Yvonne"};
static_assert(kNames.size() == kMaxFacts);

struct Fact {
  std::vector<int32_t> question, answer, stop;
  size_t size() const { return question.size() + answer.size() + stop.size(); }
};

// Prose as ids, and where its sentences begin.
struct Prose {
  std::vector<int32_t> ids;
  std::vector<size_t> starts;  // ascending, the first is 0
};

std::vector<Fact> MakeFacts(std::mt19937_64& random, uint32_t count, const Encoder& encode) {
  std::array<const char*, kMaxFacts> names = kNames;
  // std::shuffle draws differently from library to library.
  for (size_t i = names.size() - 1; i > 0; --i) std::swap(names[i], names[random() % (i + 1)]);
  std::vector<Fact> facts;
  for (uint32_t i = 0; i < count; ++i) {
    std::string digits = " ";
    for (int digit = 0; digit < 5; ++digit) digits += static_cast<char>('0' + random() % 10);
    facts.push_back(
        {.question = encode(absl::StrCat(" The secret ", kThings[random() % kThings.size()], " of ",
                                         names[i], " is")),
         .answer = encode(digits),
         .stop = encode(".")});
  }
  return facts;
}

// `count` tokens of the sentences from `first` on, round the ring at most once.
Prose TakeProse(const std::vector<std::string>& sentences, size_t first, size_t count,
                const Encoder& encode) {
  Prose prose;
  for (size_t i = 0; i < sentences.size() && prose.ids.size() < count; ++i) {
    prose.starts.push_back(prose.ids.size());
    const std::vector<int32_t> ids = encode(sentences[(first + i) % sentences.size()]);
    prose.ids.insert(prose.ids.end(), ids.begin(), ids.end());
  }
  if (prose.ids.size() > count) prose.ids.resize(count);
  return prose;
}

// For each fact, before which of the prompt's `count` tokens of prose it is told.
std::vector<size_t> Places(std::mt19937_64& random, const Prose& prose, size_t count,
                           uint32_t facts) {
  std::vector<size_t> places;
  const size_t half = count / 2, part = std::max<size_t>(half / facts, 1);
  for (uint32_t i = 0; i < facts; ++i) {
    const size_t wanted = std::min(half + part * i + random() % part, count - 1);
    auto start = std::lower_bound(prose.starts.begin(), prose.starts.end(), wanted);
    if (start == prose.starts.end() || *start >= count) --start;  // there is one: 0
    places.push_back(*start);
  }
  return places;
}

void Append(std::vector<int32_t>& tokens, const std::vector<int32_t>& more) {
  tokens.insert(tokens.end(), more.begin(), more.end());
}

void AppendFact(std::vector<int32_t>& tokens, const Fact& fact) {
  Append(tokens, fact.question);
  Append(tokens, fact.answer);
  Append(tokens, fact.stop);
}

absl::StatusOr<QualityWindow> MakeWindow(const std::vector<std::string>& sentences, size_t first,
                                         const Encoder& encode, int32_t bos,
                                         const QualityPlan& plan, std::mt19937_64& random) {
  const std::vector<Fact> facts = MakeFacts(random, plan.facts, encode);
  size_t told = 0;
  for (const Fact& fact : facts) told += fact.size();
  if (plan.prompt < 2 + told || plan.context < plan.prompt + told + 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a window of ", plan.context, " tokens with a prompt of ", plan.prompt,
        " has no room for prose beside ", plan.facts, " facts of ", told,
        " tokens in the prompt and as many asked at the end; make both longer or plant fewer"));
  }
  const size_t in_prompt = plan.prompt - 1 - told;
  const size_t scored = plan.context - plan.prompt - told;
  const Prose prose = TakeProse(sentences, first, in_prompt + scored, encode);
  if (prose.ids.size() < in_prompt + scored) {
    return absl::InvalidArgumentError(absl::StrCat("a text has ", prose.ids.size(),
                                                   " tokens, a window takes ", in_prompt + scored,
                                                   " of it; name a longer one"));
  }
  QualityWindow window{.tokens = {bos}, .prompt_tokens = plan.prompt};
  const std::vector<size_t> places = Places(random, prose, in_prompt, plan.facts);
  size_t next = 0;
  for (size_t i = 0; i < in_prompt; ++i) {
    while (next < places.size() && places[next] == i) AppendFact(window.tokens, facts[next++]);
    window.tokens.push_back(prose.ids[i]);
  }
  window.prose = {plan.prompt + 1, static_cast<uint32_t>(scored - 1)};
  window.tokens.insert(window.tokens.end(), prose.ids.begin() + in_prompt, prose.ids.end());
  for (const Fact& fact : facts) {
    window.answers.push_back({static_cast<uint32_t>(window.tokens.size() + fact.question.size()),
                              static_cast<uint32_t>(fact.answer.size())});
    AppendFact(window.tokens, fact);
  }
  return window;
}

}  // namespace

std::vector<std::string> Sentences(const std::string& text) {
  std::vector<std::string> sentences;
  size_t begin = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '.' && text[i] != '!' && text[i] != '?' && text[i] != '\n') continue;
    size_t end = i + 1;
    if (text[i] == '\n') {
      end = i;
    } else {
      while (end < text.size() && (text[end] == '"' || text[end] == '\'' || text[end] == ')')) {
        ++end;
      }
      size_t letters = 0;
      while (letters < i - begin &&
             std::isalpha(static_cast<unsigned char>(text[i - 1 - letters]))) {
        ++letters;
      }
      const bool abbreviation = text[i] == '.' && end == i + 1 && letters <= 3;
      if (abbreviation || end == text.size() || text[end] != ' ') continue;
    }
    if (end == begin) continue;
    sentences.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  if (begin < text.size()) sentences.push_back(text.substr(begin));
  return sentences;
}

absl::StatusOr<std::vector<QualityWindow>> PlanQualityWindows(const std::vector<std::string>& texts,
                                                              const Encoder& encode, int32_t bos,
                                                              const QualityPlan& plan) {
  std::vector<std::vector<std::string>> sentences;
  for (const std::string& text : texts) {
    sentences.push_back(Sentences(text));
    if (sentences.back().empty()) return absl::InvalidArgumentError("a text is empty");
  }
  if (texts.empty()) return absl::InvalidArgumentError("there is no text to measure with");
  std::mt19937_64 random(plan.seed);
  std::vector<QualityWindow> windows;
  for (uint32_t i = 0; i < plan.windows; ++i) {
    const auto& from = sentences[i % texts.size()];
    const size_t first = from.size() * i / plan.windows;
    absl::StatusOr<QualityWindow> window = MakeWindow(from, first, encode, bos, plan, random);
    if (!window.ok()) return window.status();
    windows.push_back(*std::move(window));
  }
  return windows;
}

}  // namespace kvpool
