// From the model of the command line to bash and to roff.
//
// SPDX-License-Identifier: Apache-2.0
#include "client/cli/documents.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"

namespace kvpool {
namespace {

// Each command with its words after the program's name: "", "get", "token create". Parents first.
using Visit = std::function<void(const std::string& words, const CLI::App& command)>;

void ForEachCommand(const CLI::App& app, const std::string& words, const Visit& visit) {
  visit(words, app);
  for (const CLI::App* each : app.get_subcommands([](const CLI::App*) { return true; })) {
    ForEachCommand(*each, words.empty() ? each->get_name() : words + " " + each->get_name(), visit);
  }
}

// "--file", "-f"
std::vector<std::string> FlagsOf(const CLI::Option& option) {
  std::vector<std::string> flags;
  for (const std::string& name : option.get_lnames()) flags.push_back("--" + name);
  for (const std::string& name : option.get_snames()) flags.push_back("-" + name);
  return flags;
}

// What the argument may be, where that is a list of words: CLI11 shows "TEXT:{hold,preempt}".
std::vector<std::string> ChoicesOf(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const size_t begin = type.find('{'), end = type.find('}');
  if (begin == std::string::npos || end == std::string::npos) return {};
  return absl::StrSplit(type.substr(begin + 1, end - begin - 1), ',');
}

bool TakesFile(const CLI::Option& option) {
  const auto& names = option.get_lnames();
  return std::any_of(names.begin(), names.end(), [](const std::string& name) {
    return name == "file" || name.ends_with("-file");
  });
}

// The lines of `case "$previous"` for one option.
std::string ArgumentCase(const CLI::Option& option) {
  if (option.get_items_expected_max() == 0 || FlagsOf(option).empty()) return "";
  const std::vector<std::string> choices = ChoicesOf(option);
  std::string action = "return";
  if (TakesFile(option)) action = "COMPREPLY=($(compgen -f -- \"$current\")); return";
  if (!choices.empty()) {
    action = absl::StrCat("COMPREPLY=($(compgen -W \"", absl::StrJoin(choices, " "),
                          "\" -- \"$current\")); return");
  }
  return absl::StrCat("    ", absl::StrJoin(FlagsOf(option), "|"), ") ", action, " ;;\n");
}

// What may come next in a command.
std::vector<std::string> WordsOf(const CLI::App& command, const CLI::App& root) {
  std::vector<std::string> words;
  for (const CLI::App* each : command.get_subcommands([](const CLI::App*) { return true; })) {
    words.push_back(each->get_name());
  }
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& flag : FlagsOf(*option)) words.push_back(flag);
    if (!option->get_positional()) continue;
    for (const std::string& choice : ChoicesOf(*option)) words.push_back(choice);
  }
  if (&command != &root) {
    for (const CLI::Option* option : root.get_options()) {
      for (const std::string& flag : FlagsOf(*option)) words.push_back(flag);
    }
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  return words;
}

// Text for roff: no line begins with a control character, and hyphens stay hyphens.
std::string Roff(const std::string& text) {
  std::string escaped = absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}});
  std::vector<std::string> lines = absl::StrSplit(escaped, '\n');
  for (std::string& line : lines) {
    if (line.starts_with('.') || line.starts_with('\'')) line = "\\&" + line;
  }
  return absl::StrJoin(lines, "\n");
}

// ".TP" for each option or argument, with what it may be and its default; without `left_out`.
std::string OptionsText(const CLI::App& command, const CLI::Option* left_out) {
  std::string text;
  for (const CLI::Option* option : command.get_options()) {
    if (option == left_out) continue;
    const std::vector<std::string> flags = FlagsOf(*option);
    const std::string name = flags.empty() ? option->get_name() : absl::StrJoin(flags, ", ");
    absl::StrAppend(&text, ".TP\n\\fB", Roff(name), "\\fR");
    if (option->get_items_expected_max() > 0) {
      const std::vector<std::string> choices = ChoicesOf(*option);
      // A long list may be broken after each word.
      const auto add = [](std::string* out, const std::string& word) { *out += Roff(word); };
      const std::string value = choices.empty() ? "VALUE" : absl::StrJoin(choices, "|\\:", add);
      if (!flags.empty() || !choices.empty()) absl::StrAppend(&text, " \\fI", value, "\\fR");
    }
    const std::string standard = option->get_default_str();
    absl::StrAppend(&text, "\n", Roff(option->get_description()),
                    standard.empty() ? "" : Roff(" (default " + standard + ")"),
                    option->get_required() ? " (required)" : "", "\n");
  }
  return text;
}

}  // namespace

std::string BashCompletion(const CLI::App& app) {
  const std::string& name = app.get_name();
  std::string commands, arguments, words;
  std::vector<std::string> seen;
  ForEachCommand(app, "", [&](const std::string& path, const CLI::App& command) {
    if (!path.empty()) absl::StrAppend(&commands, commands.empty() ? "" : "|", "\"", path, "\"");
    for (const CLI::Option* option : command.get_options()) {
      const std::string line = ArgumentCase(*option);
      if (std::find(seen.begin(), seen.end(), line) != seen.end()) continue;
      seen.push_back(line);
      arguments += line;
    }
    absl::StrAppend(&words, "    \"", path, "\") words=\"",
                    absl::StrJoin(WordsOf(command, app), " "), "\" ;;\n");
  });
  return absl::StrCat(
      "# bash completion of ", name, "; made by: ", name, " completion bash\n_", name,
      "() {\n"
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}\n"
      "  local command=\"\" words=\"\" next i\n"
      "  for ((i = 1; i < COMP_CWORD; ++i)); do\n"
      "    next=\"${command:+$command }${COMP_WORDS[i]}\"\n"
      "    case \"$next\" in\n      ",
      commands, ") command=$next ;;\n    esac\n  done\n  COMPREPLY=()\n  case \"$previous\" in\n",
      arguments, "  esac\n  case \"$command\" in\n", words,
      "  esac\n  COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n}\ncomplete -F _", name, " ",
      name, "\n");
}

std::string ManPage(const CLI::App& app, const ManPageTexts& texts) {
  const std::string& name = app.get_name();
  std::string upper = name;
  std::transform(upper.begin(), upper.end(), upper.begin(), ::toupper);
  // Ragged on the right: a choice of many words has no space that could be stretched.
  std::string page = absl::StrCat(
      ".TH ", upper, " 1 \"\" \"kvpool ", texts.version, "\" \"kvpool\"\n.ad l\n.SH NAME\n", name,
      " \\- ", Roff(texts.summary), "\n.SH SYNOPSIS\n.B ", name,
      "\n[\\fIoptions\\fR] \\fIcommand\\fR ...\n", ".SH DESCRIPTION\n", Roff(app.get_description()),
      "\n.SH OPTIONS\n", OptionsText(app, nullptr), ".SH COMMANDS\n");
  ForEachCommand(app, "", [&](const std::string& path, const CLI::App& command) {
    const bool group = !command.get_subcommands([](const CLI::App*) { return true; }).empty();
    if (group) return;
    std::string arguments;
    for (const CLI::Option* option : command.get_options()) {
      if (!option->get_positional()) continue;
      const std::string argument = option->get_name();
      absl::StrAppend(&arguments, " ", option->get_required() ? argument : "[" + argument + "]");
    }
    absl::StrAppend(&page, ".SS \"", Roff(name + " " + path + arguments), "\"\n",
                    Roff(command.get_description()), ".\n",
                    OptionsText(command, command.get_help_ptr()));
    if (!command.get_footer().empty()) {
      absl::StrAppend(&page, ".PP\n.nf\n", Roff(command.get_footer()), "\n.fi\n");
    }
  });
  return absl::StrCat(page, ".SH EXAMPLES\n.nf\n", Roff(texts.examples),
                      "\n.fi\n.SH EXIT STATUS\n.nf\n", Roff(texts.exit_codes), "\n.fi\n");
}

}  // namespace kvpool
