// A checkpoint directory in the Hugging Face layout: model.safetensors, or the shards that
// model.safetensors.index.json lists. Finds tensors by name and checks their shape.
//
// Knows no model: which tensors and shapes are wanted is said by weights.cc. Read-only after Open;
// any thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/safetensors.h"

namespace kvpool {

// A whole small file (config, index) as text. NotFound, or InvalidArgument past 64 MiB.
absl::StatusOr<std::string> ReadTextFile(const std::string& path);

class Checkpoint {
 public:
  static absl::StatusOr<Checkpoint> Open(const std::string& directory);

  // The tensor, which lives as long as the checkpoint. InvalidArgument names the tensor and, when
  // it is there but misshapen, the shape found and the shape wanted.
  absl::StatusOr<const TensorView*> Find(const std::string& name,
                                         const std::vector<uint64_t>& shape) const;
  // InvalidArgument when the tensor is there; `why` says why it must not be.
  absl::Status WantAbsent(const std::string& name, const std::string& why) const;

 private:
  Checkpoint(std::string directory, std::vector<SafetensorsFile> files)
      : directory_(std::move(directory)), files_(std::move(files)) {}

  std::string directory_;
  std::vector<SafetensorsFile> files_;
};

}  // namespace kvpool
