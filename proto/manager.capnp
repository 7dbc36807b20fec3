# Agent <-> manager. The agent dials the manager, registers once per connection and then exchanges
# reports for orders. Every number is absolute and carries (epoch, seq): a message that is lost,
# late, doubled or reordered can leave memory unused, never over-committed. No wall-clock times.
#
# SPDX-License-Identifier: Apache-2.0
@0x9f2b1c64a7d3e815;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("kvpool::rpc");

interface Manager @0xd41c3f0e8a5b7291 {
  # What a connection to the manager can do before it has shown the agent token: this.

  register @0 (params :RegisterParams) -> (result :RegisterResult);
  # Trades the shared agent token for a link. Must be called within limits.kAuthenticateMillis.
}

struct RegisterParams @0xb6a04e2f91c85d37 {
  protocolVersion @0 :UInt32;   # limits.kProtocolVersion of the agent
  token @1 :Text;               # the shared agent token, at most limits.kTokenBytes bytes
  agent @2 :Text;               # the agent's name, unique in the cluster, [a-z0-9-], kNameBytes
  incarnation @3 :UInt64;       # random, drawn when the agent's pool was made: another number
                                # means the old pool is gone, and all leases but what the first
                                # report says
  poolBytes @4 :UInt64;         # bytes the agent can lease out: whole slabs, reserve not counted
  slabBytes @5 :UInt64;         # bytes of one slab
  highestEpoch @6 :UInt64;      # highest manager epoch this agent has accepted
  device @7 :Text;              # "host" or the accelerator's name, for people
}

struct RegisterResult @0xe1739d58c2046fab {
  union {
    unknown @0 :Void;           # a newer manager's outcome: treat as refused
    link @1 :Link;              # registered
    refused @2 :RegisterRefusal;        # not registered, and why
  }
}

enum RegisterRefusal @0x8c5e0d7bf3a12496 {
  unknown @0;                   # a newer manager's reason
  badToken @1;                  # the token is not the agent token
  badVersion @2;                # another major protocol version
  badName @3;                   # the name breaks its rules
  nameTaken @4;                 # an agent of this name is connected with another incarnation
  tooMany @5;                   # limits.kAgents reached
  badPool @6;                   # pool or slab size is zero or not whole slabs
  staleEpoch @7;                # the agent has seen a higher epoch: this manager is not the leader
  notLeader @8;                 # another manager leads, or none yet: ask the next one
  badCertificate @9;            # the common name of the agent's TLS certificate is not its name
}

interface Link @0xa90f6b4d1e8372c5 {
  # One registered agent. Dropping it ends the registration; leases stay counted.

  exchange @0 (report :Report) -> (orders :Orders);
  # The agent calls this every limits.kReportMillis, and at once when demand or an acknowledgement
  # changes. The manager answers at once.
}

struct Report @0xc3d8a1507fe96b24 {
  seq @0 :UInt64;               # counts up on this link; an older report is ignored
  tenants @1 :List(TenantUse);  # every tenant that holds or wants anything
  reclaims @2 :List(Reclaim);   # new reclaim records, oldest first, at most kReclaimsPerReport
  freeSlabs @3 :UInt32;         # slabs of the pool that no tenant holds
  stuckSlabs @4 :UInt32;        # slabs whose memory could not be proven back
}

struct TenantUse @0xf58b27e0c914d63a {
  tenant @0 :UInt32;            # TenantId
  leaseEpoch @1 :UInt64;        # epoch of the lease the agent applied last
  leaseSeq @2 :UInt64;          # seq of the lease the agent applied last
  leaseSlabs @3 :UInt32;        # the agent's promise: it holds at most this many slabs for the
                                # tenant from now on. A shrink is acknowledged by this number
                                # having come down, which happens only when usage has, and what
                                # a restart would begin with
  heldSlabs @4 :UInt32;         # slabs in the tenant's hands now, evacuating, draining, stuck included
  usedBytes @5 :UInt64;         # bytes of pages in sessions
  wantedSlabs @6 :UInt32;       # slabs the tenant could use now: held plus waiting demand
  sessions @7 :UInt32;          # open sessions
  workers @8 :UInt32;           # attached workers
  refusals @9 :UInt64;          # typed refusals of pages or sessions since the agent started, but
                                # not those of reason leaseGrowing
  compactions @10 :UInt64;      # sessions compacted since the agent started
  recoverySum @11 :Float64;     # sum of recovery over those compactions that could be measured
  recoveryCount @12 :UInt64;    # how many those are
  recoveryMin @13 :Float64;     # least recovery of a head seen, 1 when none
  chargedSlabs @14 :UInt32;     # slabs that admission counts against the lease: peaks and overhead
                                # of the open sessions; at most the slabs of the agent
  overMillis @15 :UInt64;       # for how long, without a break, it has held more than its lease;
                                # 0: it does not
  pastDeadline @16 :Bool;       # that is longer than its grace for running bytes: it gets nothing
}

struct Reclaim @0x97e2c8b0456f1da3 {
  # One thing done to a tenant that was over its lease or due by its policy.
  tenant @0 :UInt32;            # TenantId
  ageMillis @1 :UInt64;         # how long ago, at the time of the report
  step @2 :ReclaimStep;         # which step of the reclaim order
  reason @3 :ReclaimReason;     # why
  policy @4 :Text;              # the policy with its parameters, as text
  sessions @5 :UInt32;          # sessions touched
  bytes @6 :UInt64;             # bytes freed; for a refusal the bytes refused
  recovery @7 :Float64;         # mean recovery over heads and sessions; negative when not measured
  count @8 :UInt32 = 1;         # how many equal things this record stands for
  recoveryMin @9 :Float64 = -1; # least recovery of a head; negative when not measured
  cumulativeRecovery @10 :Float64 = -1;  # mean over heads of the product of recovery over all of a
                                # session's compactions so far; negative when not measured
  cumulativeRecoveryMin @11 :Float64 = -1;  # least of a head, likewise
  measured @12 :UInt32;         # sessions that recovery is the mean of; 0: an older agent, which
                                # did not tell
  bytesBefore @13 :UInt64;      # bytes of those sessions' pages before the step; 0: a refusal, or an
                                # older agent
}

enum ReclaimStep @0xde40b71f28a5936c {
  unknown @0;                   # a newer agent's step
  parked @1;                    # 1: a parked prefix dropped
  compaction @2;                # 2: compacted by the tenant's policy
  requantisation @3;            # 3: rewritten in a smaller format
  spill @4;                     # 4: moved to host memory or disk
  refusal @5;                   # 5: new pages or a new session refused
  preemption @6;                # 6: sessions ended, idle or running
}

enum ReclaimReason @0xb02f6c95d8e1437a {
  unknown @0;                   # a newer agent's reason
  scheduled @1;                 # the policy was due
  leaseShrink @2;               # the lease came down below what is held
  noPages @3;                   # no page was left within the lease
  admission @4;                 # the session's peak did not fit
  leaseGrowing @5;              # it did not fit yet: limit and pool have room for it, and the
                                # manager has not had the time to give a lease for this demand
}

struct Orders @0x84c1e97a30bd52f6 {
  epoch @0 :UInt64;             # the manager's epoch; an agent refuses a lower one than it has seen
  tenants @1 :List(TenantOrder);# every tenant that exists: a missing one is gone, but only if
                                # `complete`; an empty incomplete list means nothing
  complete @2 :Bool;            # false while the manager is learning: keep what you have
  reportMillis @3 :UInt32;      # how often to report
}

struct TenantOrder @0xea63058d4fb7c219 {
  tenant @0 :UInt32;            # TenantId
  name @1 :Text;                # for people and metrics
  seq @2 :UInt64;               # of this lease; applied when (epoch, seq) is higher than applied
  leaseSlabs @3 :UInt32;        # slabs the tenant may hold at this agent
  policy @4 :PolicySpec;        # what to do to its sessions
  tokenHashes @5 :List(Data);   # SHA-256 of each worker token, 32 bytes each
  limitSlabs @6 :UInt32;        # the tenant's limit in whole slabs: what can never fit is told so
  graceColdMillis @7 :UInt32;   # how long what idle sessions hold may stay above a lowered lease;
                                # at most an hour, and never longer than the next
  graceRunningMillis @8 :UInt32;# how long what running sessions hold may; then it is past its grace
                                # and gets nothing new; at most an hour
  overDeadline @9 :OverDeadline;# what else becomes of it then
  floorSlabs @10 :UInt32;       # of the lease, what the agent may have again after a restart without
                                # a manager; it keeps the number on disk, where it has one
}

struct AgentState @0xd7b3c91e5f40a286 {
  # What an agent keeps on disk, to serve after a restart without a manager. Not sent to anybody.
  agent @0 :Text;               # the agent's name
  slabBytes @1 :UInt64;         # bytes of one slab
  orders @2 :Orders;            # complete; leases are what is kept of them, seq is 0
}

enum OverDeadline @0xa4492697965b8e05 {
  # What an agent does not know it takes for `hold`.
  unknown @0;                   # an older manager's: there is no grace that could pass
  hold @1;                      # it keeps what its running sessions hold until they end
  preempt @2;                   # sessions are ended, idle and young ones first, until it fits
}

struct PolicySpec @0xcb5f90e3617a2d48 {
  name @0 :Text;                # as in common/policy_spec.h
  parameters @1 :List(Parameter);  # those that are missing have their defaults
}

struct Parameter @0xa3e7d4b285c0f916 {
  name @0 :Text;                # as in the policy's schema
  union {                       # of the schema's type, in its unit
    integer @1 :Int64;          # a whole number
    number @2 :Float64;         # a share or another number
    choice @3 :Text;            # one of the names that the schema allows
  }
}
