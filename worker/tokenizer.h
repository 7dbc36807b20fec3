// Text to token ids and back: a sentencepiece model.
//
// Free of abseil, because sentencepiece's header declares its own absl::string_view, which cannot
// meet the real one in a translation unit. Read-only after Load; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sentencepiece {
class SentencePieceProcessor;
}

namespace kvpool {

class Tokenizer {
 public:
  // nullptr when the file cannot be read or is no sentencepiece model; then *error says why.
  static std::unique_ptr<Tokenizer> Load(const std::string& path, std::string* error);
  ~Tokenizer();

  // Pieces that the model knows: ids are 0 .. pieces() - 1.
  uint32_t pieces() const;
  // The piece `id` (< pieces()) as the model has it: U+2581 stands for a space.
  std::string Piece(int32_t id) const;
  // Whether it is a mark of the format and no text: BOS, EOS.
  bool IsControl(int32_t id) const;
  // Ids of the text alone; the caller puts BOS in front.
  std::vector<int32_t> Encode(const std::string& text) const;
  // Ids of a text that goes on where another one ended: without the space that Encode may put in
  // front, so that pieces of a text give the ids of the whole.
  std::vector<int32_t> EncodeMore(const std::string& text) const;
  // Ids that are no pieces (a model may pad its vocabulary) give no text.
  std::string Decode(std::span<const int32_t> ids) const;

 private:
  explicit Tokenizer(std::unique_ptr<sentencepiece::SentencePieceProcessor> processor);
  std::unique_ptr<sentencepiece::SentencePieceProcessor> processor_;
};

}  // namespace kvpool
