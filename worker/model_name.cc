// See model_name.h.
//
// SPDX-License-Identifier: Apache-2.0
#include "worker/model_name.h"

#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "common/secret.h"

namespace kvpool {

absl::StatusOr<std::string> ModelName(const std::string& directory, const LlamaConfig& config,
                                      PromptMode mode) {
  for (uint32_t layer = 0; layer < config.layers; ++layer) {
    const bool cyclic = config.layer_types.UsesKvFromAbove(layer);
    if (cyclic && mode == PromptMode::kIterated) return std::string();
  }
  std::error_code error;
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() != ".safetensors") continue;
    files.insert(absl::StrCat(entry.path().filename().string(), " ", entry.file_size(error), " ",
                              entry.last_write_time(error).time_since_epoch().count(), "\n"));
  }
  if (error) return absl::NotFoundError(absl::StrCat(directory, ": ", error.message()));
  std::ifstream file(directory + "/config.json");
  std::string all{std::istreambuf_iterator<char>(file), {}};
  for (const std::string& line : files) all += line;
  return ToHex(Sha256(all));
}

}  // namespace kvpool
