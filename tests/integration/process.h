// Real processes for integration tests: start a program of this build, or one at an absolute path,
// stop it, wait for a condition with a deadline. Test code, one thread.
//
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/paths.h"

namespace kvpool {

// A folder that is removed again.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "kvpool-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

// A child process: SIGTERM, then waited for, on destruction. One that then ends with an error, as a
// sanitizer makes it after a report that nobody asked for, ends the test with what it logged.
class Process {
 public:
  Process() = default;
  // `log`: where stdout and stderr go; empty: where ours go.
  Process(const std::string& program, std::vector<std::string> args, const std::string& log)
      : log_(log) {
    pid_ = fork();
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);  // nothing outlives a test that is killed
    if (!log.empty()) {
      const int fd = open(log.c_str(), O_CREAT | O_WRONLY | O_APPEND, 0600);
      dup2(fd, 1);
      dup2(fd, 2);
    }
    std::vector<char*> argv;
    std::string path = program.starts_with('/') ? program : ProgramPath(program);
    argv.push_back(path.data());
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    execv(path.c_str(), argv.data());
    _exit(127);
  }
  // Runs `body` in a forked child; its return value is the exit code.
  static Process Fork(const std::function<int()>& body) {
    Process process;
    process.pid_ = fork();
    if (process.pid_ == 0) _exit(body());
    return process;
  }
  Process(Process&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), log_(std::move(other.log_)) {}
  Process& operator=(Process&& other) noexcept {
    std::swap(pid_, other.pid_);
    std::swap(log_, other.log_);
    return *this;
  }
  ~Process() {
    if (pid_ <= 0) return;
    kill(pid_, SIGTERM);
    const int code = Wait();
    if (code == 0 || code > 128) return;
    std::cerr << "a program ended with code " << code << ":\n" << std::ifstream(log_).rdbuf();
    std::abort();
  }

  pid_t pid() const { return pid_; }
  void Kill(int signal) const { kill(pid_, signal); }
  bool Running() const { return pid_ > 0 && waitpid(pid_, nullptr, WNOHANG) == 0; }
  // Its exit code; 128 + signal when a signal ended it.
  int Wait() {
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  std::string log_;
};

// A port that nobody listens on right now; 0 when there is none.
inline uint16_t FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(address);
  const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                     getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  close(fd);
  return bound ? ntohs(address.sin_port) : 0;
}

// Polls until `condition` holds; false after `deadline`.
inline bool Eventually(const std::function<bool()>& condition,
                       std::chrono::milliseconds deadline = std::chrono::seconds(10)) {
  const auto end = std::chrono::steady_clock::now() + deadline;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace kvpool
