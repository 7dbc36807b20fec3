// The inbox: a vector under a mutex and an eventfd that the loop watches.
//
// SPDX-License-Identifier: Apache-2.0
#include "common/kj_asio.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "common/log.h"

namespace kvpool {

Inbox::Inbox(kj::UnixEventPort& port)
    : event_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      observer_(port, event_.get(), kj::UnixEventPort::FdObserver::OBSERVE_READ),
      running_(Run().eagerlyEvaluate([](kj::Exception&& error) {
        Logger("inbox").Error("the inbox has stopped", {{"error", error.getDescription().cStr()}});
      })) {}

void Inbox::Post(kj::Function<void()> function) {
  std::lock_guard lock(mutex_);
  posted_.push_back(kj::mv(function));
  if (posted_.size() > 1) return;  // the loop has been woken and has not looked yet
  const uint64_t one = 1;
  // Cannot fail: the counter would have to overflow.
  [[maybe_unused]] const ssize_t written = write(event_.get(), &one, sizeof(one));
}

kj::Promise<void> Inbox::Run() {
  // Asked before the queue is emptied: a post from here on is seen as a new edge.
  kj::Promise<void> readable = observer_.whenBecomesReadable();
  RunPosted();
  return readable.then([this] { return Run(); });
}

void Inbox::RunPosted() {
  uint64_t count;
  [[maybe_unused]] const ssize_t got = read(event_.get(), &count, sizeof(count));
  std::vector<kj::Function<void()>> functions;
  {
    std::lock_guard lock(mutex_);
    functions.swap(posted_);
  }
  for (kj::Function<void()>& function : functions) {
    KJ_IF_MAYBE (error, kj::runCatchingExceptions([&] { function(); })) {
      Logger("inbox").Error("a posted function failed",
                            {{"error", error->getDescription().cStr()}});
    }
  }
}

void KjLogScope::logMessage(kj::LogSeverity severity, const char* file, int line, int,
                            kj::String&& text) {
  const Logger logger("kj");
  const Logger::Fields fields = {{"detail", text.cStr()}, {"file", file}, {"line", line}};
  if (severity >= kj::LogSeverity::ERROR) {
    logger.Warn("the RPC library reports an error", fields);
  } else {
    logger.Debug("the RPC library reports", fields);
  }
}

}  // namespace kvpool
