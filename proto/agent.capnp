# Worker <-> agent, over the agent's unix socket. Control only: pages are taken and returned through
# shared memory (proto/shared_memory.h) without a call. Everything is batched; nothing here is called
# per page. Expected outcomes are values; an exception means that the connection is unusable.
# No wall-clock times: durations only.
#
# SPDX-License-Identifier: Apache-2.0
@0xb7a4c1902e5fd683;

using Cxx = import "/capnp/c++.capnp";
$Cxx.namespace("kvpool::rpc");

interface Agent @0xf3068b9d17ac42e5 {
  # What a connection can do before it has shown a tenant's token: this.

  authenticate @0 (params :AuthenticateParams) -> (result :AuthenticateResult);
  # Trades a tenant token for a Tenant. Once per tenant that the worker serves; the first accepted
  # one must come within limits.kAuthenticateMillis of connecting.
}

struct AuthenticateParams @0xa85d20f7c4936e1b {
  protocolVersion @0 :UInt32;   # limits.kProtocolVersion of the worker
  token @1 :Text;               # the tenant's worker token, at most limits.kTokenBytes bytes
  worker @2 :Text;              # the worker's name for people and logs, at most kNameBytes
}

struct AuthenticateResult @0x92c7e4b60d38f15a {
  union {
    unknown @0 :Void;           # a newer agent's outcome: treat as refused
    tenant @1 :Tenant;          # the token is good
    refused @2 :Refusal;        # it is not, or the agent will not serve this peer
  }
}

struct Refusal @0xcd19f0a2873b5e64 {
  # A typed no.
  reason @0 :RefusalReason;     # for programs
  text @1 :Text;                # for people, one sentence
}

enum RefusalReason @0xe60b4d7f21c8a395 {
  unknown @0;                   # a newer agent's reason
  badToken @1;                  # no tenant has this token
  badVersion @2;                # another major protocol version
  badGeometry @3;               # malformed, or a page does not fit a slab
  tooMany @4;                   # a maximum of the table of limits is reached
  noSpace @5;                   # within the tenant's lease there is no room, now
  tooLarge @6;                  # it can never fit: larger than the tenant's limit or a fixed maximum
  badArgument @7;               # a value is out of range
  badState @8;                  # the session is not in the state that the call needs
  badPageList @9;               # the page list in shared memory is not this worker's: session failed
  shuttingDown @10;             # the agent is going away
  preempted @11;                # the agent ended the session: its tenant was past its grace
}

interface Tenant @0x8f72d6a5be1c0439 {
  # One tenant as seen by one worker. Dropping it gives everything back.

  attach @0 (params :AttachParams) -> (result :AttachResult);
  # Registers a geometry and makes the shared memory. Once per Tenant.
}

struct Geometry @0xda3e95c80b6f7142 {
  # A list of layer groups; the first version accepts exactly one.
  groups @0 :List(LayerGroup);  # in the order of the group index
}

struct LayerGroup @0x9be0417fd562c8a3 {
  layers @0 :UInt32;            # cached layers
  queryHeads @1 :UInt32;        # query heads of a model layer, a multiple of kvHeads
  kvHeads @2 :UInt32;           # KV heads of a cached layer
  keyDim @3 :UInt32;            # elements of a key
  valueDim @4 :UInt32;          # elements of a value; 0 for latent caches
  dtype @5 :Dtype;              # format of fresh keys and values
  kvOfLayer @6 :List(UInt16);   # model layer -> cached layer of this group
  window @7 :UInt32;            # sliding window in tokens; 0: none. Only 0 is accepted for now
  selfMasked @8 :List(UInt16);  # model layers, ascending, whose tokens do not attend to themselves
}

enum Dtype @0xb0f5c3297e84da16 {
  unknown @0;                   # refused
  f32 @1;                       # 4 bytes
  bf16 @2;                      # 2 bytes
  f16 @3;                       # 2 bytes, IEEE binary16
}

struct AttachParams @0xec7429d0a1f8b563 {
  geometry @0 :Geometry;        # of the model's cache
  maxSessions @1 :UInt32;       # session slots wanted, at most kSessionsPerWorker
  maxRunning @2 :UInt32;        # query windows wanted: the largest batch, at most kRunningPerWorker
  maxSessionTokens @3 :UInt32;  # longest session, at most kSessionTokens
  chunkTokens @4 :UInt32;       # most tokens the worker appends between two safe points
  events @5 :WorkerEvents;      # what the agent calls
  queries @6 :QueryOffer;       # which queries the worker can push
}

enum QueryOffer @0xbe41c7d92a5f6038 {
  # What an agent does not know it takes for `none`.
  all @0;                       # whichever a policy needs
  none @1;                      # none: sessions under a policy that needs some are refused
}

struct AttachResult @0x81d5b7e0f69c34a2 {
  union {
    unknown @0 :Void;           # a newer agent's outcome: treat as refused
    attached @1 :Attached;      # the tenant's memory at this agent
    refused @2 :Refusal;        # not attached, and why
  }
}

struct Attached @0xc46a0e9358d7f21b {
  attachment @0 :Attachment;    # everything else hangs from it
  control @1 :Memory;           # fd: the worker's read-write memory (shared_memory.h, Control)
  tables @2 :Memory;            # fd: the agent's memory, mapped read-only (shared_memory.h, Tables)
  slabBytes @3 :UInt64;         # bytes of a slab
  slabSlots @4 :UInt32;         # slabs in the pool's virtual range: reserve slabSlots * slabBytes
  policy @5 :Text;              # the tenant's policy with parameters, for people
  doorbell @6 :Memory;          # fd: an eventfd of the agent's; the worker writes to it when the
                                # grant ring runs low and Control says that the agent sleeps
  workerId @7 :UInt32;          # of this attachment, for logs
}

interface Memory @0xf9a1c5384e60d72b {
  # A piece of memory. Carries its file descriptor as the capability's fd; it has no methods.
}

interface WorkerEvents @0xa4d8370fbc51e962 {
  # What an agent asks of a worker. Returning from a call acknowledges it.

  slabsGranted @0 (slabs :List(SlabGrant)) -> ();
  # Map each slab into its slot, then return. Pages of a slab enter the magazine only afterwards.
  # At most kSlabsPerCall.

  slabsRevoked @1 (slabs :List(UInt32)) -> ();
  # Unmap each slot, then return. No session of this worker has a block there any more.
  # At most kSlabsPerCall.

  pressure @2 (returnPages :Bool, sessions :List(UInt32)) -> ();
  # returnPages: put every page that no session uses into the return ring before returning.
  # sessions: slots of RUNNING sessions to hand over at their next safe point; returns at once.
}

struct SlabGrant @0xd2570e6bc9f38a41 {
  index @0 :UInt32;             # slot: map at base + index * slabBytes
  memory @1 :Memory;            # carries the fd
}

interface Attachment @0xe8b3f16704a29dc5 {
  # A worker's hold on memory. Dropping it frees all its sessions and pages.

  reserve @0 (pages :UInt32) -> (result :Outcome);
  # Makes the magazine hold at least `pages` pages, or says why not. Called when the ring holds too
  # few for the next step or chunk: all its pages or none.

  openSession @1 (params :OpenParams) -> (result :OpenResult);

  drain @2 (items :List(DrainItem)) -> (results :List(Outcome));
  # Scores queries of each window against the keys present; on return their entries may be reused.
  # At most kBatchItems.

  handOver @3 (slots :List(UInt32)) -> (results :List(HandOverResult));
  # The worker is at a safe point of these RUNNING sessions, has no drain of them under way and has
  # stored BUSY in their state words. On return each is RUNNING again, or FAILED: `badPageList`, or
  # `preempted`, when it was to be ended. RUNNING too after `noSpace`: it was due, and could neither
  # be compacted, nor was there room for more of it; nothing may be appended before it is handed over
  # again. It comes after about a second.
  # At most kBatchItems.

  ping @4 () -> ();
  # Costs one round trip; for health checks and as the yardstick of benchmarks.

  statistics @5 () -> (leaseSlabs :UInt32, heldSlabs :UInt32, usedBytes :UInt64);
  # The tenant's numbers at this agent, for tools and tests.

  detach @6 () -> ();
  # Lets go of everything: the worker has unmapped its slabs and will not touch them again. Only
  # after hanging up without it must the agent wait for the end of the worker's process.

  forkSession @7 (slot :UInt32, maxTokens :UInt32) -> (result :OpenResult);
  # A session that begins as this one is now, and goes on by itself: it shares every full page and
  # gets a copy of the last one. The worker is at a safe point of the session, which is RUNNING or
  # IDLE, has all its queries scored and has not been compacted or moved; else `badState`. The new
  # one is under the same policy; its sharedTokens are all tokens of the other.
}

struct Outcome @0x95f2a80b3dc7e641 {
  union {
    unknown @0 :Void;           # a newer agent's outcome: treat as refused
    ok @1 :Void;                # done as asked
    refused @2 :Refusal;        # not done, and why
  }
}

struct OpenParams @0xbf10d9427e65c38a {
  promptTokens @0 :UInt32;      # length of the prompt, at least 1
  maxTokens @1 :UInt32;         # longest the session can get, prompt included
  prompt @2 :List(UInt32);      # the prompt's tokens, or the first of them: what is known of it is
                                # shared. Any numbers; at most promptTokens and kPrefixTokens.
                                # Empty: nothing is shared
  model @3 :Text;               # what keys and values depend on besides the tokens and the geometry:
                                # the weights, an adapter. Only prompts of one model are shared. At
                                # most kPrefixModelBytes
}

struct OpenResult @0xd7c6e1a85f209b34 {
  union {
    unknown @0 :Void;           # a newer agent's outcome: treat as refused
    opened @1 :Opened;          # admitted
    refused @2 :Refusal;        # noSpace: try again when a session has ended; tooLarge: never;
                                # tooMany: no slot is free; badArgument: a number, or the policy
                                # needs queries that attach did not offer; badState: the policy's
                                # format cannot be had here
  }
}

struct Opened @0x8a9c4f7320bed651 {
  session @0 :Session;          # dropping it frees the session
  slot @1 :UInt32;              # its slot in both shared memories; state RUNNING, empty but for
                                # sharedTokens
  queryNeed @2 :QueryNeed;      # which queries to push
  sampleEvery @3 :UInt32;       # for sampled: one query in this many
  promptRows @4 :UInt32;        # for exact: last queries of each chunk of several tokens to push;
                                # for prompt: last queries of the prompt to push; with a
                                # profile: of the prompt, and every query after it
  tokenFlags @5 :Bool;          # whether the flags of tokens are wanted (shared_memory.h)
  profile @6 :ProfileWish;      # how to profile the prompt; sampleEvery 0: not at all
  sharedTokens @7 :UInt32;      # tokens of the prompt that are in the cache already, a multiple of 16
                                # less than promptTokens: their pages begin the page list, and
                                # `committed` says so. The session shares them: never write there
}

struct ProfileWish @0xb41d8e93f6072ac5 {
  # FastGen: which class each head of a prompt gets. The arithmetic is kernels/profile.h.
  sampleEvery @0 :UInt32;       # one row of the prompt in this many is looked at; 0: no profile
  recovery @1 :Float64;         # share of the attention that a head's class must keep
  local @2 :Float64;            # share of the length that is local
  frequent @3 :Float64;         # share of the length that is frequent
  group @4 :ProfileGroup;       # which of a KV head's query heads must reach the recovery
}

enum ProfileGroup @0xe92c5a07d1b8634f {
  # What a worker does not know it takes for `min`.
  min @0;                       # the least of them
  mean @1;                      # their mean
}

enum QueryNeed @0xcb83560da2f7e194 {
  # What a worker does not know it takes for `none`.
  none @0;                      # push none
  sampled @1;                   # push one in sampleEvery when there is room; never wait
  exact @2;                     # push every one; wait for a full window to drain
  prompt @3;                    # push the last promptRows before position promptTokens and wait
                                # for them; after it as for sampled
}

interface Session @0xf06d8be4a9127c53 {
  # One sequence's cache: liveness only. Everything about it is in shared memory.
}

struct DrainItem @0x9d40a7f5c6e2b318 {
  slot @0 :UInt32;              # session slot; RUNNING, and it stays so meanwhile
  window @1 :UInt32;            # query window that holds its queries
  first @2 :UInt64;             # sequence number of the first query, which lies in entry first % W.
                                # The agent takes each number once, in order
  count @3 :UInt32;             # queries, at most W. The worker may push others meanwhile
}

struct HandOverResult @0xa7160bc9f4d5e832 {
  outcome @0 :Outcome;          # ok also when nothing had to change; noSpace: see handOver
  compacted @1 :Bool;           # rows were dropped
  moved @2 :Bool;               # blocks moved: a new epoch is in the table
  recovery @3 :Float32;         # mean over heads, negative when not measured
}
