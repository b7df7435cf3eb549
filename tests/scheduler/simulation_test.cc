// SPDX-License-Identifier: Apache-2.0
// The scheduler under seeded random load, with a fake model over a shadow of the KV cache and a
// clock moved by hand: a million steps and more, everything that must always hold checked at each
// of them.
#include <algorithm>
#include <map>
#include <random>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/scheduler/fakes.h"
#include "tests/scheduler/shadow_executor.h"

namespace r1d::scheduler {
namespace {

using std::chrono::milliseconds;

#ifdef R1D_SANITIZED
constexpr int64_t kStepsPerSeed = 3'000;
#else
constexpr int64_t kStepsPerSeed = 50'000;
#endif
constexpr int32_t kNumSeeds = 40;  // 2 million steps

constexpr Duration kLongestStep = milliseconds(12);
constexpr int32_t kHighestPriority = 2;  // and -2 the lowest

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  // In [low, high].
  int32_t between(int32_t low, int32_t high) {
    return low + static_cast<int32_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  bool chance(double probability) {
    return static_cast<double>(engine_() >> 11) * 0x1p-53 < probability;
  }
  uint64_t bits() { return engine_(); }

 private:
  std::mt19937_64 engine_;
};

// One world's rules, drawn from its seed.
struct World {
  SchedulerOptions options;
  FakeModel model;
  double arrivals_per_step = 0;
  double cancel_rate = 0;    // of requests
  double deadline_rate = 0;  // of requests
  double failure_rate = 0;   // of steps
  int32_t most_sequences = 1;
  int32_t longest_prompt = 1;
  int32_t most_tokens = 1;
  int32_t num_prefixes = 1;
  int32_t num_salts = 1;
  int32_t num_stop_ids = 0;
  int32_t steps_ahead = 0;    // of the executor
  double look_back_rate = 0;  // of requests

  explicit World(Random& random) {
    options.block_size = random.between(1, random.chance(0.6) ? 4 : 16);
    options.max_batch_size = random.between(1, 12);
    options.max_num_batched_tokens = random.between(1, 3) * random.between(4, 24);
    options.max_model_len = random.between(16, 72);
    options.max_waiting_requests = random.between(4, 24);
    const int32_t fewest = (options.max_model_len + options.block_size - 1) / options.block_size;
    options.num_blocks = fewest + random.between(0, random.chance(0.5) ? fewest / 2 : 3 * fewest);
    options.batch_timeout = milliseconds(random.chance(0.5) ? random.between(1, 40) : 0);
    options.priority_aging = milliseconds(random.between(20, 200));
    options.prefix_cache = random.chance(0.75);
    model.vocab_size = random.between(20, 400);
    model.fault_one_in = random.chance(0.5) ? 500 : 0;
    arrivals_per_step = 0.01 * random.between(2, 60);
    cancel_rate = random.chance(0.7) ? 0.15 : 0;
    deadline_rate = random.chance(0.7) ? 0.2 : 0;
    failure_rate = random.chance(0.5) ? 0.005 : 0;
    most_sequences = random.between(1, 4);
    longest_prompt = random.between(2, (options.max_model_len - 1) / (random.chance(0.5) ? 1 : 4));
    most_tokens = random.between(1, options.max_model_len);
    num_prefixes = random.between(1, 4);
    num_salts = random.between(1, 3);
    num_stop_ids = random.between(0, 3);
    steps_ahead = random.between(0, 1);
    look_back_rate = random.chance(0.3) ? 0.1 : 0;
  }
};

struct Counts {
  int64_t steps = 0;
  int64_t sequences = 0;
  int64_t refused = 0;
  int64_t preemptions = 0;
  int64_t hits = 0;
  int64_t cancels = 0;
  int64_t failures = 0;  // of steps
  int64_t ahead = 0;     // steps that were started behind another
  std::map<FinishReason, int64_t> finishes;
  int64_t longest_life = 0;  // steps from arrival to finish

  void operator+=(const Counts& other) {
    steps += other.steps;
    sequences += other.sequences;
    refused += other.refused;
    preemptions += other.preemptions;
    hits += other.hits;
    cancels += other.cancels;
    failures += other.failures;
    ahead += other.ahead;
    for (const auto& [reason, count] : other.finishes) finishes[reason] += count;
    longest_life = std::max(longest_life, other.longest_life);
  }
};

// How a sequence must go when nothing cuts it short, and how it goes.
struct Expected {
  std::vector<TokenId> tokens;
  FinishReason reason = FinishReason::kLength;
  size_t num_seen = 0;
  bool finished = false;
};

class Simulation;

// A request as the simulation follows it; compares each event with what must come.
class Client final : public OutputSink {
 public:
  Client(Simulation& simulation, const Request& request, SequenceId first_id);
  void on_token(TokenEvent event) override;
  void on_finish(const FinishEvent& event) override;

  const RequestId id;
  const SequenceId first_id;  // sequence i has first_id + i
  const int32_t n;
  const std::optional<TimePoint> deadline;
  TimePoint rank;
  std::optional<int64_t> cancel_at_step;
  int64_t arrival_step = 0;
  int64_t work = 0;        // steps that its sequences take one after the other, at most
  int64_t work_ahead = 0;  // of the requests that were live when it came
  TimePoint arrival;

  std::vector<Expected> expected;

 private:
  Simulation& simulation_;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed);

  // Random load for `num_steps` steps, then until nothing is live.
  Counts run(int64_t num_steps);

  void finished(const Client& client, const FinishEvent& event);
  [[nodiscard]] const World& world() const { return world_; }
  [[nodiscard]] bool step_fails() const { return step_fails_; }

 private:
  void arrive();
  Request make_request();
  std::vector<TokenId> make_prompt();
  void cancel_some();
  void turn();
  void start_step();
  void finish_step();
  void fail_step();
  void check_batch();
  void check_wait(const Decision& decision);
  void check_life(const Client& client);
  [[nodiscard]] int64_t work_arrived_by(TimePoint time) const;

  Random random_;
  World world_;
  ManualClock clock_;
  ShadowExecutor executor_;
  Scheduler scheduler_;
  std::map<RequestId, std::shared_ptr<Client>> clients_;  // live
  std::map<SequenceId, Client*> sequences_;               // live
  std::vector<std::pair<TimePoint, int64_t>> arrived_;    // total work accepted, by time
  std::multimap<int64_t, RequestId> cancels_;             // by step
  std::vector<std::vector<TokenId>> conversations_;       // prompt and output of some requests
  bool step_fails_ = false;
  SequenceId earliest_ = 0;  // of the last batch, by rank; it must be in the next one
  SequenceId next_sequence_ = 1;
  RequestId next_request_ = 1;
  Counts counts_;
};

Client::Client(Simulation& simulation, const Request& request, SequenceId first)
    : id(request.id),
      first_id(first),
      n(request.n),
      deadline(request.deadline),
      arrival(request.arrival),
      expected(static_cast<size_t>(request.n)),
      simulation_(simulation) {
  const World& world = simulation.world();
  rank = request.arrival + request.priority * world.options.priority_aging;
  const auto prompt_len = static_cast<int32_t>(request.prompt.size());
  const std::vector<TokenId>& stops = request.sampling.stop_token_ids;
  uint64_t prompt_history = FakeModel::start(std::hash<std::string>{}(request.cache_salt));
  for (const TokenId token : request.prompt)
    prompt_history = FakeModel::extend(prompt_history, token);
  for (int32_t i = 0; i < n; ++i) {
    Expected& run = expected[static_cast<size_t>(i)];
    uint64_t history = prompt_history;
    const int32_t most =
        std::min(request.sampling.max_tokens, world.options.max_model_len - prompt_len);
    while (static_cast<int32_t>(run.tokens.size()) < most) {
      const auto result =
          world.model.next(history, request.sampling.seed + static_cast<uint64_t>(i));
      if (!result.status.ok()) run.reason = FinishReason::kError;
      if (std::ranges::find(stops, result.token) != stops.end()) run.reason = FinishReason::kStop;
      if (run.reason != FinishReason::kLength) break;
      run.tokens.push_back(result.token);
      history = FakeModel::extend(history, result.token);
    }
    work += prompt_len + most;
  }
}

void Client::on_token(TokenEvent event) {
  Expected& run = expected[static_cast<size_t>(event.index)];
  ASSERT_FALSE(run.finished) << "request " << id;
  ASSERT_LT(run.num_seen, run.tokens.size()) << "request " << id;
  ASSERT_EQ(event.token.token, run.tokens[run.num_seen])
      << "request " << id << " at " << run.num_seen;
  ++run.num_seen;
}

void Client::on_finish(const FinishEvent& event) {
  Expected& run = expected[static_cast<size_t>(event.index)];
  ASSERT_FALSE(std::exchange(run.finished, true)) << "request " << id << " finished twice";
  EXPECT_EQ(static_cast<size_t>(event.num_output_tokens), run.num_seen);
  const bool lost = event.reason == FinishReason::kError && absl::IsUnavailable(event.status);
  if (lost) {
    EXPECT_TRUE(simulation_.step_fails()) << "request " << id;
  } else if (event.reason != FinishReason::kCancelled && event.reason != FinishReason::kDeadline) {
    EXPECT_EQ(event.reason, run.reason) << "request " << id;
    EXPECT_EQ(run.num_seen, run.tokens.size()) << "request " << id;
  }
  EXPECT_LE(event.arrival, event.first_scheduled);
  EXPECT_LE(event.first_scheduled, event.first_token);
  EXPECT_LE(event.first_token, event.time);
  simulation_.finished(*this, event);
}

Simulation::Simulation(uint64_t seed)
    : random_(seed),
      world_(random_),
      executor_(world_.options, world_.model, world_.steps_ahead),
      scheduler_(world_.options) {}

Counts Simulation::run(int64_t num_steps) {
  while (counts_.steps < num_steps && !::testing::Test::HasFailure()) {
    if (random_.chance(world_.arrivals_per_step)) arrive();
    cancel_some();
    turn();
  }
  for (int32_t i = 0; !clients_.empty() && !::testing::Test::HasFailure(); ++i) {
    EXPECT_LT(i, 100'000) << "what is live never ends";
    turn();
  }
  EXPECT_TRUE(scheduler_.idle());
  const SchedulerStats stats = scheduler_.stats();
  EXPECT_EQ(stats.num_blocks_used, 0) << "every block is free or cached";
  EXPECT_LE(executor_.num_restarts(), stats.num_preemptions);
  counts_.preemptions = stats.num_preemptions;
  counts_.hits = stats.prefix_hits;
  return counts_;
}

void Simulation::arrive() {
  const bool full = scheduler_.stats().num_queued_requests >= world_.options.max_waiting_requests;
  Request request = make_request();
  auto client = std::make_shared<Client>(*this, request, next_sequence_);
  std::vector<TokenId> conversation = request.prompt;
  for (int32_t i = 0; i < client->n; ++i) {
    executor_.set_salt(next_sequence_ + static_cast<uint64_t>(i),
                       std::hash<std::string>{}(request.cache_salt));
  }
  request.sink = client;
  const absl::Status status = scheduler_.add(std::move(request), clock_.now());
  ASSERT_EQ(status.code(), full ? absl::StatusCode::kResourceExhausted : absl::StatusCode::kOk);
  if (full) {
    ++counts_.refused;
    return;
  }
  client->arrival_step = counts_.steps;
  for (const auto& [id, other] : clients_) client->work_ahead += other->work;
  arrived_.emplace_back(clock_.now(),
                        (arrived_.empty() ? 0 : arrived_.back().second) + client->work);
  for (int32_t i = 0; i < client->n; ++i) sequences_[next_sequence_++] = client.get();
  if (random_.chance(world_.cancel_rate)) {
    cancels_.emplace(counts_.steps + random_.between(0, 40), client->id);
  }
  const std::vector<TokenId>& output = client->expected[0].tokens;
  conversation.insert(conversation.end(), output.begin(), output.end());
  if (conversations_.size() < 8) conversations_.emplace_back();
  conversations_[client->id % conversations_.size()] = std::move(conversation);
  counts_.sequences += client->n;
  clients_.emplace(client->id, std::move(client));
}

Request Simulation::make_request() {
  Request request;
  request.id = next_request_++;
  request.arrival = clock_.now();
  request.prompt = make_prompt();
  request.n = random_.between(1, world_.most_sequences);
  request.priority = random_.between(-kHighestPriority, kHighestPriority);
  request.sampling.seed = random_.bits();
  request.sampling.max_tokens = random_.between(1, world_.most_tokens);
  if (random_.chance(world_.look_back_rate)) request.sampling.presence_penalty = 1;
  for (int32_t i = 0; i < world_.num_stop_ids; ++i) request.sampling.stop_token_ids.push_back(i);
  request.capture_logits = random_.chance(0.1);
  if (random_.chance(0.5)) {
    request.cache_salt = fmt::format("salt {}", random_.between(1, world_.num_salts));
  }
  if (random_.chance(world_.deadline_rate)) {
    request.deadline = clock_.now() + milliseconds(random_.between(0, 400));
  }
  return request;
}

// Part of an earlier conversation, or one of a few prefixes, and something new after it.
std::vector<TokenId> Simulation::make_prompt() {
  const auto length = static_cast<size_t>(random_.between(1, world_.longest_prompt));
  std::vector<TokenId> prompt;
  if (!conversations_.empty() && random_.chance(0.3)) {
    const int32_t chosen = random_.between(0, static_cast<int32_t>(conversations_.size()) - 1);
    prompt = conversations_[static_cast<size_t>(chosen)];
  } else {
    // NOTE: one token repeated, so that blocks differ in their parents alone.
    prompt.assign(length, random_.between(0, world_.num_prefixes - 1));
  }
  prompt.resize(static_cast<size_t>(
      random_.between(0, static_cast<int32_t>(std::min(length, prompt.size())))));
  while (prompt.size() < length) {
    prompt.push_back(random_.between(0, world_.model.vocab_size - 1));
  }
  return prompt;
}

void Simulation::cancel_some() {
  while (!cancels_.empty() && cancels_.begin()->first <= counts_.steps) {
    const RequestId id = cancels_.begin()->second;
    cancels_.erase(cancels_.begin());
    const bool live = clients_.contains(id);
    EXPECT_EQ(scheduler_.cancel(id, FinishReason::kCancelled, cancelled("left"), clock_.now()),
              live);
    counts_.cancels += live ? 1 : 0;
    scheduler_.check_invariants();
  }
}

void Simulation::turn() {
  const Decision decision = scheduler_.plan(clock_.now());
  scheduler_.check_invariants();
  if (decision.kind == Decision::Kind::kRun) {
    start_step();
  } else if (scheduler_.num_in_flight() > 0) {
    finish_step();
  } else if (decision.kind == Decision::Kind::kIdle) {
    EXPECT_TRUE(clients_.empty());
    clock_.advance(milliseconds(random_.between(1, 30)));
  } else {
    check_wait(decision);
    const Duration wait = decision.until - clock_.now();
    clock_.advance(random_.chance(0.5) ? wait : std::min<Duration>(wait, milliseconds(2)));
  }
}

// What runs ends, what waits is left as it was, and no block is remembered: the shadow of the cache
// is wiped, so that a stale hit would show.
void Simulation::fail_step() {
  ++counts_.failures;
  std::set<RequestId> in_step;
  for (const engine::SequenceStep& step : scheduler_.batch()) {
    in_step.insert(sequences_.at(step.sequence)->id);
  }
  const SchedulerStats before = scheduler_.stats();
  step_fails_ = true;
  const int64_t num_ended = scheduler_.fail_step(unavailable("rank 1 is gone"), clock_.now());
  step_fails_ = false;
  for (const RequestId id : in_step) EXPECT_FALSE(clients_.contains(id)) << "request " << id;
  EXPECT_GE(num_ended, static_cast<int64_t>(in_step.size()));
  EXPECT_LE(num_ended, before.num_running);
  const SchedulerStats after = scheduler_.stats();
  EXPECT_EQ(after.num_running, 0);
  EXPECT_LE(after.num_waiting, before.num_waiting);
  EXPECT_EQ(after.num_queued_requests, before.num_queued_requests);
  EXPECT_EQ(after.num_blocks_used + after.num_blocks_cached, 0);
  executor_.wipe();
  scheduler_.check_invariants();
  earliest_ = 0;
}

void Simulation::start_step() {
  check_batch();
  if (random_.chance(world_.failure_rate)) return fail_step();
  const absl::Status started = executor_.start(scheduler_.batch());
  ASSERT_TRUE(started.ok()) << started;
  if (scheduler_.num_in_flight() > 1) ++counts_.ahead;
  if (scheduler_.num_in_flight() > executor_.steps_ahead()) finish_step();
}

void Simulation::finish_step() {
  absl::StatusOr<engine::StepOutput> output = executor_.finish();
  ASSERT_TRUE(output.ok()) << output.status();
  ++counts_.steps;
  clock_.advance(milliseconds(random_.between(1, kLongestStep / milliseconds(1))));
  scheduler_.commit(*std::move(output), clock_.now());
  scheduler_.check_invariants();
  if (scheduler_.num_in_flight() > 0) return;
  if (counts_.steps % 5'000 == 0 && random_.chance(0.5)) scheduler_.preempt_all(), earliest_ = 0;
}

void Simulation::check_batch() {
  bool earliest_runs = earliest_ == 0 || !sequences_.contains(earliest_);
  SequenceId earliest = 0;
  for (const engine::SequenceStep& step : scheduler_.batch()) {
    const Client& client = *sequences_.at(step.sequence);
    ASSERT_TRUE(!client.deadline || *client.deadline > clock_.now()) << "runs past its deadline";
    earliest_runs = earliest_runs || step.sequence == earliest_;
    const auto rank = std::pair(client.rank, step.sequence);
    if (earliest == 0 || rank < std::pair(sequences_.at(earliest)->rank, earliest)) {
      earliest = step.sequence;
    }
  }
  // Behind a step in flight, the earliest may have to wait for that.
  ASSERT_TRUE(earliest_runs || world_.steps_ahead > 0)
      << "the earliest-ranked running sequence was left out";
  earliest_ = earliest;
}

void Simulation::check_wait(const Decision& decision) {
  ASSERT_GT(decision.until, clock_.now());
  ASSERT_EQ(scheduler_.stats().num_running, 0);
  ASSERT_GT(world_.options.batch_timeout, Duration::zero());
  for (const auto& [id, client] : clients_) {
    ASSERT_LE(decision.until, client->arrival + world_.options.batch_timeout);
    ASSERT_TRUE(!client->deadline || decision.until <= *client->deadline);
  }
}

void Simulation::finished(const Client& client, const FinishEvent& event) {
  ++counts_.finishes[event.reason];
  if (event.reason == FinishReason::kDeadline) {
    ASSERT_TRUE(client.deadline.has_value());
    EXPECT_GE(event.time, *client.deadline);
    EXPECT_LE(event.time, *client.deadline + kLongestStep) << "by more than a step";
  }
  check_life(client);
  sequences_.erase(client.first_id + static_cast<SequenceId>(event.index));
  if (std::ranges::all_of(client.expected, &Expected::finished))
    clients_.erase(RequestId{client.id});
}

// Nobody starves. The earliest-ranked sequence of all computes a token in each step, once it has a
// place; so a sequence ends at the latest when all work that ranks before it has been done one
// token at a time, and the work of those who hold the places when its turn comes.
void Simulation::check_life(const Client& client) {
  const int64_t life = counts_.steps - client.arrival_step;
  counts_.longest_life = std::max(counts_.longest_life, life);
  const auto window = 2 * kHighestPriority * world_.options.priority_aging;
  const int64_t arrived =
      work_arrived_by(client.arrival + window) - work_arrived_by(client.arrival);
  const int64_t places = int64_t{world_.options.max_batch_size} * world_.options.max_model_len;
  EXPECT_LE(life, client.work_ahead + client.work + arrived + 2 * places)
      << "request " << client.id;
}

int64_t Simulation::work_arrived_by(TimePoint time) const {
  const auto after =
      std::ranges::upper_bound(arrived_, time, {}, [](const auto& a) { return a.first; });
  return after == arrived_.begin() ? 0 : std::prev(after)->second;
}

void print(uint64_t seed, const Counts& counts) {
  fmt::print(
      "seed {}: {} steps, {} sequences, {} refused, {} preemptions, {} tokens hit, {} cancels, "
      "{} failed steps, {} started ahead, longest life {} steps;",
      seed,
      counts.steps,
      counts.sequences,
      counts.refused,
      counts.preemptions,
      counts.hits,
      counts.cancels,
      counts.failures,
      counts.ahead,
      counts.longest_life);
  for (const auto& [reason, count] : counts.finishes) {
    fmt::print(" {} {}", finish_reason_name(reason), count);
  }
  fmt::print("\n");
}

TEST(SimulationTest, HoldsItsInvariantsForAMillionSteps) {
  Counts total;
  for (uint64_t seed = 1; seed <= kNumSeeds; ++seed) {
    SCOPED_TRACE(fmt::format("seed {}", seed));
    Simulation simulation(seed);
    const Counts counts = simulation.run(kStepsPerSeed);
    print(seed, counts);
    total += counts;
    ASSERT_FALSE(HasFailure());
  }
  print(0, total);
  EXPECT_GE(total.steps, kNumSeeds * kStepsPerSeed);
  // The worlds are such that each thing happens often.
  EXPECT_GT(total.preemptions, total.steps / 200);
  EXPECT_GT(total.hits, total.steps / 200);
  EXPECT_GT(total.cancels, total.steps / 1000);
  EXPECT_GT(total.refused, 0);
  EXPECT_GT(total.failures, total.steps / 1000);
  EXPECT_GT(total.ahead, total.steps / 10);
  for (const FinishReason reason : {FinishReason::kStop,
                                    FinishReason::kLength,
                                    FinishReason::kCancelled,
                                    FinishReason::kDeadline,
                                    FinishReason::kError}) {
    EXPECT_GT(total.finishes[reason], total.steps / 10'000) << finish_reason_name(reason);
  }
}

}  // namespace
}  // namespace r1d::scheduler
