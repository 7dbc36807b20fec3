// Reader of one .safetensors file: maps it, checks its header, hands out views of its tensors.
//
// The file is hostile until Open has returned: header length, JSON, dtypes, shapes, offsets, holes
// and overlaps are checked there. It does not know which tensors a model wants (checkpoint.h).
// Read-only after Open; any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace kvpool {

enum class TensorType : uint8_t { kF32, kF16, kBf16 };

// One tensor inside a mapped file. data.size() == product of shape * element bytes.
struct TensorView {
  TensorType type = TensorType::kF32;
  std::vector<uint64_t> shape;
  std::span<const std::byte> data;
};

class SafetensorsFile {
 public:
  // NotFound or InvalidArgument; the message names the file, and the tensor where one is wrong.
  static absl::StatusOr<SafetensorsFile> Open(const std::string& path);

  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;
  ~SafetensorsFile();

  // nullptr when the file has no tensor of this name. Lives as long as the file.
  const TensorView* Find(const std::string& name) const;
  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  explicit SafetensorsFile(std::span<const std::byte> mapping) : mapping_(mapping) {}

  std::span<const std::byte> mapping_;
  std::map<std::string, TensorView> tensors_;
};

// Converts every element to f32. Requires out.size() == number of elements.
void ConvertToF32(const TensorView& tensor, std::span<float> out);

}  // namespace kvpool
