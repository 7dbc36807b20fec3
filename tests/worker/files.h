// A folder for a test's files, gone with the test.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace kvpool {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "kvpool-worker-test-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;

  const std::string& path() const { return path_; }

  // Returns the file's path.
  std::string Write(const std::string& name, const std::string& bytes) {
    const std::string path = path_ + "/" + name;
    std::filesystem::remove(path);  // truncating a file in place makes some file systems flush it
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    return path;
  }

 private:
  std::string path_;
};

}  // namespace kvpool
