// The one file that includes sentencepiece.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/tokenizer.h"

#include <sentencepiece_processor.h>

#include <algorithm>
#include <iterator>
#include <utility>

namespace kvpool {

std::unique_ptr<Tokenizer> Tokenizer::Load(const std::string& path, std::string* error) {
  auto processor = std::make_unique<sentencepiece::SentencePieceProcessor>();
  if (const auto status = processor->Load(path); !status.ok()) {
    *error = "cannot load tokenizer " + path + ": " + status.ToString();
    return nullptr;
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(processor)));
}

Tokenizer::Tokenizer(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor)
    : processor_(std::move(processor)) {}

Tokenizer::~Tokenizer() = default;

uint32_t Tokenizer::pieces() const { return static_cast<uint32_t>(processor_->GetPieceSize()); }

std::string Tokenizer::Piece(int32_t id) const { return processor_->IdToPiece(id); }

bool Tokenizer::IsControl(int32_t id) const { return processor_->IsControl(id); }

std::vector<int32_t> Tokenizer::Encode(const std::string& text) const {
  return processor_->EncodeAsIds(text);
}

std::vector<int32_t> Tokenizer::EncodeMore(const std::string& text) const {
  // A line's end is in no piece with what follows it.
  static const std::string kBefore = "\n";
  const size_t before = processor_->EncodeAsIds(kBefore).size();
  std::vector<int32_t> ids = processor_->EncodeAsIds(kBefore + text);
  ids.erase(ids.begin(), ids.begin() + std::min(before, ids.size()));
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids) const {
  std::vector<int> known;
  std::copy_if(ids.begin(), ids.end(), std::back_inserter(known),
               [&](int id) { return id >= 0 && id < processor_->GetPieceSize(); });
  return processor_->DecodeIds(known);
}

}  // namespace kvpool
