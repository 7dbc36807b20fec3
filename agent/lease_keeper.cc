// Look, write, look again.
//
// SPDX-License-Identifier: Apache-2.0
#include "agent/lease_keeper.h"

#include <utility>

#include "common/kj_asio.h"
#include "common/rpc_connect.h"

namespace kvpool {
namespace {

constexpr auto kAfterFailure = 1 * kj::SECONDS;

}  // namespace

LeaseKeeper::LeaseKeeper(const Deps& deps, std::string path, StateOwner owner,
                         std::function<void()> on_kept)
    : deps_(deps), path_(std::move(path)), owner_(std::move(owner)), on_kept_(std::move(on_kept)) {}

void LeaseKeeper::Look() {
  if (path_.empty() || writing_) return;
  writing_ = true;
  task_ = Write().eagerlyEvaluate([this](kj::Exception&& error) {
    writing_ = false;
    log_.Error("the state file is not written any more", {{"error", ToStatus(error).ToString()}});
  });
}

kj::Promise<void> LeaseKeeper::Write() {
  KeptOrders orders = deps_.book->ToKeep();
  std::string content = EncodeState(owner_, orders);
  if (content == content_) {
    writing_ = false;
    return kj::READY_NOW;
  }
  deps_.book->BeginKeeping(orders);
  return Offload(*deps_.pool, [path = path_, content] { return WriteState(path, content); })
      .then([this, content = std::move(content),
             orders = std::move(orders)](absl::Status written) mutable -> kj::Promise<void> {
        if (!written.ok()) {
          content_.clear();
          if (failures_++ % 60 == 0) {
            log_.Error(
                "cannot keep the floors of this agent's tenants; their leases do not come "
                "down until it can",
                {{"error", written.ToString()}});
          }
          return deps_.timer->afterDelay(kAfterFailure);
        }
        ++writes_;
        content_ = std::move(content);
        deps_.book->Kept(orders);
        on_kept_();
        return kj::READY_NOW;
      })
      .then([this] { return Write(); });
}

}  // namespace kvpool
