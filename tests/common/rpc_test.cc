// RpcListener and RpcConnect over real sockets, with peers that break the rules.
//
// SPDX-License-Identifier: Apache-2.0
#include <capnp/message.h>
#include <capnp/rpc-twoparty.h>
#include <capnp/rpc.capnp.h>
#include <capnp/serialize.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "common/kj_asio.h"
#include "common/rpc_connect.h"
#include "common/rpc_listener.h"
#include "proto/agent.capnp.h"
#include "proto/limits.h"

namespace kvpool {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kToken[] = "open sesame";

class MemoryServer final : public rpc::Memory::Server {
 public:
  explicit MemoryServer(int fd) : fd_(fd) {}
  kj::Maybe<int> getFd() override { return fd_.get(); }

 private:
  kj::AutoCloseFd fd_;
};

int MemfdWith(const std::string& text) {
  const int fd = memfd_create("test", MFD_CLOEXEC);
  EXPECT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  return fd;
}

class TenantServer final : public rpc::Tenant::Server {
 public:
  explicit TenantServer(int* alive, kj::Maybe<rpc::WorkerEvents::Client>* events)
      : alive_(alive), events_(events) {
    ++*alive_;
  }
  ~TenantServer() { --*alive_; }

  // Keeps the events capability and passes a descriptor back.
  kj::Promise<void> attach(AttachContext context) override {
    *events_ = context.getParams().getParams().getEvents();
    auto attached = context.getResults().initResult().initAttached();
    attached.setControl(kj::heap<MemoryServer>(MemfdWith("from the agent")));
    return kj::READY_NOW;
  }

 private:
  int* alive_;
  kj::Maybe<rpc::WorkerEvents::Client>* events_;
};

class EventsServer final : public rpc::WorkerEvents::Server {
 public:
  explicit EventsServer(int fd) : fd_(fd) {}
  kj::Maybe<int> getFd() override { return fd_.get(); }

 private:
  kj::AutoCloseFd fd_;
};

// Token "throw" throws; one that begins with "hang" is never answered; any other wrong token is
// refused with a text as long as the token.
class AgentServer final : public rpc::Agent::Server {
 public:
  AgentServer(kj::Own<RpcConnection> connection, int* tenants, int* hanging,
              kj::Maybe<rpc::WorkerEvents::Client>* events)
      : connection_(kj::mv(connection)), tenants_(tenants), hanging_(hanging), events_(events) {}

  kj::Promise<void> authenticate(AuthenticateContext context) override {
    const auto token = context.getParams().getParams().getToken();
    KJ_REQUIRE(token != "throw", "internal secret 0xdeadbeef");
    if (token.startsWith("hang")) {
      ++*hanging_;
      return kj::NEVER_DONE;
    }
    auto result = context.getResults().initResult();
    if (token == kToken) {
      connection_->Authenticated();
      result.setTenant(kj::heap<TenantServer>(tenants_, events_));
    } else {
      result.initRefused().setText(token);
    }
    return kj::READY_NOW;
  }

 private:
  kj::Own<RpcConnection> connection_;
  int* tenants_;
  int* hanging_;
  kj::Maybe<rpc::WorkerEvents::Client>* events_;
};

class RpcTest : public ::testing::Test {
 public:
  ~RpcTest() noexcept override {}

 protected:
  void SetUp() override {
    char name[] = "/tmp/kvpool-rpc-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    folder_ = name;
  }
  void TearDown() override {
    events_ = nullptr;
    listener_.reset();
    std::filesystem::remove_all(folder_);
  }

  UnixPath Path() const { return UnixPath{folder_ + "/agent.sock"}; }

  absl::Status Listen(RpcListenerOptions options) {
    auto listener = RpcListener::Listen(
        *io_.lowLevelProvider, options, [this](RpcPeer peer, kj::Own<RpcConnection> connection) {
          connection->OnDisconnect([this] { ++disconnects_; });
          pid_ = peer.pid;
          uid_ = peer.uid;
          pidfd_ = kj::mv(peer.pidfd);
          return kj::heap<AgentServer>(kj::mv(connection), &tenants_, &hanging_, &events_);
        });
    if (!listener.ok()) return listener.status();
    listener_ = *std::move(listener);
    return absl::OkStatus();
  }

  kj::Own<RpcClient> Connect() { return RpcConnect(io_, listener_->address()).wait(io_.waitScope); }

  // The result of an authenticate call, or the exception's text.
  std::string Authenticate(RpcClient& client, const std::string& token) {
    auto request = client.Bootstrap().castAs<rpc::Agent>().authenticateRequest();
    request.initParams().setToken(token.c_str());
    return request.send()
        .then(
            [](auto&& response) -> std::string {
              return response.getResult().isTenant() ? "tenant" : "refused";
            },
            [](kj::Exception&& e) { return std::string(e.getDescription().cStr()); })
        .wait(io_.waitScope);
  }

  rpc::Tenant::Client Tenant(RpcClient& client) {
    auto request = client.Bootstrap().castAs<rpc::Agent>().authenticateRequest();
    request.initParams().setToken(kToken);
    return request.send().wait(io_.waitScope).getResult().getTenant();
  }

  template <typename Predicate>
  bool TurnUntil(Predicate done) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(8);
    while (!done()) {
      if (std::chrono::steady_clock::now() > deadline) return false;
      io_.provider->getTimer().afterDelay(1 * kj::MILLISECONDS).wait(io_.waitScope);
    }
    return true;
  }

  // A plain socket to the listener's path.
  kj::AutoCloseFd RawConnect() {
    kj::AutoCloseFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un name{.sun_family = AF_UNIX};
    strncpy(name.sun_path, Path().path.c_str(), sizeof(name.sun_path) - 1);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
    return fd;
  }

  // True once the peer has closed; what it wrote before goes to `text`.
  bool ClosedByPeer(int fd, std::string* text = nullptr) {
    return TurnUntil([&] {
      char buffer[4096];
      const ssize_t got = recv(fd, buffer, sizeof(buffer), MSG_DONTWAIT);
      if (got > 0 && text != nullptr) text->append(buffer, got);
      return got == 0 || (got < 0 && errno != EAGAIN);
    });
  }

  std::string folder_;
  kj::AsyncIoContext io_ = kj::setupAsyncIo();
  int tenants_ = 0, disconnects_ = 0, hanging_ = 0;
  pid_t pid_ = 0;
  uid_t uid_ = 0;
  kj::AutoCloseFd pidfd_;
  kj::Maybe<rpc::WorkerEvents::Client> events_;
  std::unique_ptr<RpcListener> listener_;
};

TEST_F(RpcTest, UnixSocketKnowsItsPeer) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  struct stat info;
  ASSERT_EQ(stat(Path().path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0660u);
  {
    auto client = Connect();
    EXPECT_EQ(Authenticate(*client, kToken), "tenant");
    EXPECT_EQ(pid_, getpid());
    EXPECT_EQ(uid_, getuid());
    pollfd watched{.fd = pidfd_.get(), .events = POLLIN};
    EXPECT_EQ(poll(&watched, 1, 0), 0) << "we are alive";
    EXPECT_EQ(listener_->counters().open, 1u);
  }
  EXPECT_TRUE(TurnUntil([&] { return disconnects_ == 1; }));
  EXPECT_EQ(listener_->counters().open, 0u);
  EXPECT_EQ(listener_->counters().garbage, 0u) << "hanging up is no fault";
  listener_.reset();
  EXPECT_FALSE(std::filesystem::exists(Path().path));
}

TEST_F(RpcTest, TcpServesWithoutDescriptors) {
  ASSERT_TRUE(Listen({.address = HostPort{"127.0.0.1", 0}}).ok());
  EXPECT_NE(std::get<HostPort>(listener_->address()).port, 0);
  auto client = Connect();
  EXPECT_EQ(Authenticate(*client, kToken), "tenant");
  EXPECT_EQ(pid_, 0);
  auto response = Tenant(*client).attachRequest().send().wait(io_.waitScope);
  EXPECT_TRUE(response.getResult().getAttached().getControl().getFd().wait(io_.waitScope) ==
              nullptr);
}

TEST_F(RpcTest, DescriptorsReachTheClientAndNotTheServer) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto client = Connect();
  auto request = Tenant(*client).attachRequest();
  request.initParams().setEvents(kj::heap<EventsServer>(MemfdWith("from the worker")));
  auto response = request.send().wait(io_.waitScope);
  auto control = response.getResult().getAttached().getControl();
  const auto fd = control.getFd().wait(io_.waitScope);
  ASSERT_TRUE(fd != nullptr);
  KJ_IF_MAYBE (number, fd) {
    char text[14];
    EXPECT_EQ(pread(*number, text, sizeof(text), 0), 14);
    EXPECT_EQ(std::string(text, 14), "from the agent");
  }
  ASSERT_TRUE(events_ != nullptr);
  KJ_IF_MAYBE (events, events_) {
    EXPECT_TRUE(events->getFd().wait(io_.waitScope) == nullptr) << "a worker's fd got in";
  }
}

// Counts the memories that arrive with a descriptor.
class CountingEvents final : public rpc::WorkerEvents::Server {
 public:
  explicit CountingEvents(uint32_t* with_fd) : with_fd_(with_fd) {}

  kj::Promise<void> slabsGranted(SlabsGrantedContext context) override {
    kj::Vector<kj::Promise<void>> all;
    for (auto slab : context.getParams().getSlabs()) {
      auto memory = slab.getMemory();
      auto fd = memory.getFd();
      all.add(fd.then([this, memory = kj::mv(memory)](kj::Maybe<int> fd) {
        *with_fd_ += fd == nullptr ? 0 : 1;
      }));
    }
    return kj::joinPromises(all.releaseAsArray());
  }

 private:
  uint32_t* with_fd_;
};

TEST_F(RpcTest, DescriptorsAboveTheMaximumOfAMessageAreDropped) {
  // An agent of another make, which sends more of them than ours would.
  auto address = io_.provider->getNetwork().parseAddress("unix:" + Path().path).wait(io_.waitScope);
  auto receiver = address->listen();
  auto accepted = receiver->accept();
  auto client = RpcConnect(io_, Path()).wait(io_.waitScope);
  auto stream = accepted.wait(io_.waitScope);
  capnp::TwoPartyServer server(kj::heap<AgentServer>(
      kj::refcounted<RpcConnection>(kj::newPromiseAndFulfiller<void>().fulfiller), &tenants_,
      &hanging_, &events_));
  server.accept(stream.downcast<kj::AsyncCapabilityStream>(), 4 * limits::kFdsPerMessage);

  uint32_t with_fd = 0;
  auto attach = Tenant(*client).attachRequest();
  attach.initParams().setEvents(kj::heap<CountingEvents>(&with_fd));
  attach.send().wait(io_.waitScope);
  auto request = KJ_ASSERT_NONNULL(events_).slabsGrantedRequest();
  auto slabs = request.initSlabs(limits::kFdsPerMessage + 4);
  for (auto slab : slabs) slab.setMemory(kj::heap<MemoryServer>(MemfdWith("x")));
  request.send().wait(io_.waitScope);
  EXPECT_EQ(with_fd, limits::kFdsPerMessage);
  EXPECT_EQ(Authenticate(*client, kToken), "tenant") << "the connection goes on";
  events_ = nullptr;
}

TEST_F(RpcTest, DisconnectReleasesWhatThePeerHeldBeforeTheCallback) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto client = Connect();
  std::vector<rpc::Tenant::Client> held;
  held.reserve(10);
  for (int i = 0; i < 10; ++i) {
    held.push_back(Tenant(*client));
  }
  EXPECT_EQ(tenants_, 10);
  held.clear();
  client = nullptr;
  EXPECT_TRUE(TurnUntil([&] { return disconnects_ == 1; }));
  EXPECT_EQ(tenants_, 0);
}

TEST_F(RpcTest, ClientNoticesThatTheServerHasGone) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto client = Connect();
  EXPECT_EQ(Authenticate(*client, kToken), "tenant");
  bool gone = false;
  auto watching = client->OnDisconnect().then([&] { gone = true; }).eagerlyEvaluate(nullptr);
  listener_.reset();
  EXPECT_EQ(disconnects_, 1);
  EXPECT_TRUE(TurnUntil([&] { return gone; }));
  EXPECT_THAT(Authenticate(*client, kToken), Not(HasSubstr("tenant")));
}

TEST_F(RpcTest, SilentConnectionIsCutAtTheDeadlineAndOthersAreNot) {
  ASSERT_TRUE(Listen({.address = Path(), .authenticate = std::chrono::milliseconds(100)}).ok());
  auto good = Connect();
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  auto guessing = Connect();
  EXPECT_EQ(Authenticate(*guessing, "guess"), "refused");
  const kj::AutoCloseFd silent = RawConnect();
  EXPECT_TRUE(ClosedByPeer(silent));
  EXPECT_TRUE(TurnUntil([&] { return listener_->counters().unauthenticated == 2; }));
  EXPECT_EQ(listener_->counters().open, 1u);
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
}

TEST_F(RpcTest, ConnectionsAboveTheMaximumAreClosedAtOnce) {
  ASSERT_TRUE(Listen({.address = Path(), .connections = 2}).ok());
  auto first = Connect();
  auto second = Connect();
  EXPECT_EQ(Authenticate(*first, kToken), "tenant");
  EXPECT_EQ(Authenticate(*second, kToken), "tenant");
  EXPECT_TRUE(ClosedByPeer(RawConnect()));
  EXPECT_EQ(listener_->counters().above_maximum, 1u);
  EXPECT_EQ(Authenticate(*first, kToken), "tenant");
  second = nullptr;
  EXPECT_TRUE(TurnUntil([&] { return listener_->counters().open == 1; }));
  auto third = Connect();
  EXPECT_EQ(Authenticate(*third, kToken), "tenant");
}

TEST_F(RpcTest, GarbageEndsOneConnectionAndNoOther) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto good = Connect();
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  using Words = std::vector<uint32_t>;
  const std::vector<Words> frames = {
      Words{0xffffffff, 0xffffffff},        // segment count that overflows
      Words{0, 0x80000000},                 // a segment of 16 GiB
      Words{600, 1, 1, 1},                  // more segments than allowed
      Words{0, limits::kMessageWords + 1},  // just above the limit
      Words{0, 1, 0xfffffffc, 0x7fffffff},  // a root that points outside
      Words(64, 0x47455420),                // "GET GET GET ..."
  };
  for (const Words& frame : frames) {
    const kj::AutoCloseFd raw = RawConnect();
    ASSERT_GT(send(raw, frame.data(), frame.size() * 4, MSG_NOSIGNAL), 0);
    std::string answer;
    EXPECT_TRUE(ClosedByPeer(raw, &answer));
    EXPECT_THAT(answer, Not(HasSubstr("capnp"))) << "internal wording reached the peer";
    EXPECT_THAT(answer, Not(HasSubstr("expected")));
    EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  }
  EXPECT_TRUE(TurnUntil([&] { return listener_->counters().open == 1; }));
  EXPECT_EQ(listener_->counters().garbage, frames.size());
  EXPECT_EQ(listener_->counters().unread, 0u);
}

// A message that the RPC system has to walk through, because it does not know its kind: it sends a
// copy back.
kj::Array<capnp::word> NestedMessage(uint32_t depth) {
  capnp::MallocMessageBuilder message;
  auto pointer = message.initRoot<capnp::rpc::Message>().initObsoleteSave();
  for (uint32_t level = 1; level < depth; ++level) {
    pointer = pointer.initAsAnyStruct(0, 1).getPointerSection()[0];
  }
  return capnp::messageToFlatArray(message);
}

TEST_F(RpcTest, AMessageThatIsTooDeepEndsItsConnectionAlone) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto good = Connect();
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  const auto send_nested = [](int fd, uint32_t depth) {
    const auto words = NestedMessage(depth);
    const auto bytes = words.asBytes();
    return send(fd, bytes.begin(), bytes.size(), MSG_NOSIGNAL) ==
           static_cast<ssize_t>(bytes.size());
  };
  const kj::AutoCloseFd raw = RawConnect();
  ASSERT_TRUE(send_nested(raw, limits::kNestingDepth - 1));
  char answer[4096];
  EXPECT_TRUE(TurnUntil([&] { return recv(raw, answer, sizeof(answer), MSG_DONTWAIT) > 0; }));
  EXPECT_EQ(listener_->counters().open, 2u) << "this depth is allowed";
  ASSERT_TRUE(send_nested(raw, limits::kNestingDepth + 1));
  EXPECT_TRUE(ClosedByPeer(raw));
  EXPECT_TRUE(TurnUntil([&] { return listener_->counters().garbage == 1; }));
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
}

TEST_F(RpcTest, AMessageAboveTheLimitFailsAtItsSender) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto client = Connect();
  EXPECT_EQ(Authenticate(*client, std::string(limits::kMessageWords * 8 - 4096, 'x')), "refused");
  EXPECT_THAT(Authenticate(*client, std::string(limits::kMessageWords * 8, 'x')),
              HasSubstr("larger than"));
  EXPECT_EQ(Authenticate(*client, kToken), "tenant") << "the connection goes on";
}

TEST_F(RpcTest, TextOfExceptionsStaysInside) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto client = Connect();
  const std::string error = Authenticate(*client, "throw");
  EXPECT_THAT(error, HasSubstr("failed"));
  EXPECT_THAT(error, Not(HasSubstr("secret")));
  EXPECT_EQ(Authenticate(*client, kToken), "tenant") << "the connection goes on";
}

TEST_F(RpcTest, APeerThatDoesNotReadItsAnswersIsCut) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto good = Connect();
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");

  // Calls whose answers are as long as the question, through a socket whose answers nobody reads.
  capnp::MallocMessageBuilder bootstrap;
  bootstrap.initRoot<capnp::rpc::Message>().initBootstrap().setQuestionId(0);
  const kj::AutoCloseFd raw = RawConnect();
  auto send_message = [&](capnp::MessageBuilder& message) {
    const auto words = capnp::messageToFlatArray(message);
    const auto bytes = words.asBytes();
    for (size_t sent = 0; sent < bytes.size();) {
      const ssize_t n =
          send(raw, bytes.begin() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n < 0 && errno != EAGAIN) return false;
      if (n > 0) sent += n;
      if (n < 0) io_.provider->getTimer().afterDelay(1 * kj::MILLISECONDS).wait(io_.waitScope);
    }
    return true;
  };
  ASSERT_TRUE(send_message(bootstrap));
  bool open = true;
  constexpr uint32_t kTokenSize = 100000;
  for (uint32_t question = 1; open && question < 20 * limits::kSendQueueBytes / kTokenSize;
       ++question) {
    capnp::MallocMessageBuilder message;
    auto call = message.initRoot<capnp::rpc::Message>().initCall();
    call.setQuestionId(question);
    call.initTarget().initPromisedAnswer().setQuestionId(0);
    call.setInterfaceId(capnp::typeId<rpc::Agent>());
    call.setMethodId(0);
    auto params = call.initParams().getContent().initAs<rpc::Agent::AuthenticateParams>();
    params.initParams().setToken(std::string(kTokenSize, 'x').c_str());
    open = send_message(message);
  }
  EXPECT_FALSE(open);
  EXPECT_TRUE(TurnUntil([&] { return listener_->counters().open == 1; }));
  EXPECT_EQ(listener_->counters().unread, 1u);
  EXPECT_EQ(listener_->counters().garbage, 0u);
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
}

TEST_F(RpcTest, UnansweredCallsHaveALimit) {
  ASSERT_TRUE(Listen({.address = Path()}).ok());
  auto good = Connect();
  EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  auto client = Connect();
  EXPECT_EQ(Authenticate(*client, kToken), "tenant");
  const std::string token = "hang" + std::string(400000, 'x');
  constexpr int kSent = 20;
  std::vector<kj::Promise<void>> calls;
  for (int i = 0; i < kSent; ++i) {
    auto request = client->Bootstrap().castAs<rpc::Agent>().authenticateRequest();
    request.initParams().setToken(token.c_str());
    calls.push_back(request.send().ignoreResult().eagerlyEvaluate(nullptr));
  }
  const int expected = static_cast<int>(limits::kInFlightWords * 8 / token.size()) + 1;
  EXPECT_TRUE(TurnUntil([&] { return hanging_ >= expected; }));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Authenticate(*good, kToken), "tenant");
  EXPECT_EQ(hanging_, expected) << "the limit does not hold";
  calls.clear();
  client = nullptr;
  EXPECT_TRUE(TurnUntil([&] { return disconnects_ == 1; })) << "nobody noticed that it has gone";
}

TEST_F(RpcTest, SocketFileRules) {
  // A file left behind by a process that died is replaced.
  {
    kj::AutoCloseFd fd(socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un name{.sun_family = AF_UNIX};
    strncpy(name.sun_path, Path().path.c_str(), sizeof(name.sun_path) - 1);
    ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)), 0);
  }
  ASSERT_TRUE(std::filesystem::exists(Path().path));
  ASSERT_TRUE(Listen({.address = Path()}).ok());

  // One in use is not.
  const auto factory = [](RpcPeer, kj::Own<RpcConnection>) -> capnp::Capability::Client {
    return kj::Exception(kj::Exception::Type::FAILED, __FILE__, __LINE__);
  };
  const auto listen = [&](Address address) {
    return RpcListener::Listen(*io_.lowLevelProvider, {.address = address}, factory).status();
  };
  EXPECT_THAT(std::string(listen(Path()).message()), HasSubstr("another process listens"));
  auto client = Connect();
  EXPECT_EQ(Authenticate(*client, kToken), "tenant");

  const std::string file = folder_ + "/file";
  kj::AutoCloseFd(open(file.c_str(), O_CREAT | O_WRONLY, 0600));
  EXPECT_THAT(std::string(listen(UnixPath{file}).message()), HasSubstr("not a socket"));
  EXPECT_TRUE(std::filesystem::exists(file));
  EXPECT_THAT(std::string(listen(UnixPath{folder_ + "/none/a.sock"}).message()),
              HasSubstr("folder must exist"));
  EXPECT_THAT(std::string(listen(HostPort{"manager.example", 1}).message()),
              HasSubstr("numeric address"));
}

TEST(AddressTest, ParsesAndRefuses) {
  EXPECT_EQ(*ParseAddress("/run/a.sock"), Address(UnixPath{"/run/a.sock"}));
  EXPECT_EQ(*ParseAddress("[::1]:80"), Address(HostPort{"::1", 80}));
  EXPECT_EQ(ToString(*ParseHostPort("[::1]:80")), "[::1]:80");
  EXPECT_THAT(*ParseHostPorts("a:1"), ::testing::ElementsAre(HostPort{"a", 1}));
  EXPECT_THAT(*ParseHostPorts("a:1,[::1]:2"),
              ::testing::ElementsAre(HostPort{"a", 1}, HostPort{"::1", 2}));
  for (const char* bad : {"", ",", "a:1,", ",a:1", "a:1,,b:2", "a:1 ,b:2", "a"}) {
    EXPECT_FALSE(ParseHostPorts(bad).ok()) << bad;
  }
  EXPECT_EQ(*ParseHostPort("localhost:0"), (HostPort{"localhost", 0}));
  for (const char* bad :
       {"", "host", ":80", "host:", "host:65536", "host:-1", "::1:80", "host:8x", "[]:80"}) {
    EXPECT_FALSE(ParseHostPort(bad).ok()) << bad;
  }
  EXPECT_FALSE(ParseAddress("/" + std::string(120, 'a')).ok());
}

TEST(AddressTest, ServersHaveOneScheme) {
  const auto plain = ParseHttpServers("a:1,http://[::1]:2");
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->scheme, Scheme::kHttp);
  EXPECT_THAT(plain->addresses, ::testing::ElementsAre(HostPort{"a", 1}, HostPort{"::1", 2}));
  const auto secure = ParseHttpServers("https://a:1,https://b:2");
  ASSERT_TRUE(secure.ok()) << secure.status();
  EXPECT_EQ(secure->scheme, Scheme::kHttps);
  EXPECT_THAT(secure->addresses, ::testing::ElementsAre(HostPort{"a", 1}, HostPort{"b", 2}));
  for (const char* bad : {"", "https://", "https://a", "https://a:1,b:2", "a:1,https://b:2", "a:1,",
                          "ftp://a:1", "https://https://a:1", "https://a:1/"}) {
    EXPECT_FALSE(ParseHttpServers(bad).ok()) << bad;
  }
}

TEST(AddressTest, KnowsLoopbackAndAddresses) {
  for (const char* host : {"127.0.0.1", "127.9.9.9", "::1", "localhost"}) {
    EXPECT_TRUE(IsLoopback({host})) << host;
  }
  for (const char* host : {"0.0.0.0", "::", "10.0.0.1", "manager", "127.0.0.1.example", ""}) {
    EXPECT_FALSE(IsLoopback({host})) << host;
  }
  for (const char* host : {"127.0.0.1", "::1", "fe80::1"}) EXPECT_TRUE(IsNumeric({host})) << host;
  for (const char* host : {"localhost", "10.0.0", "a", ""}) EXPECT_FALSE(IsNumeric({host})) << host;
}

}  // namespace
}  // namespace kvpool
