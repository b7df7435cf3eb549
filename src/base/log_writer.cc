// SPDX-License-Identifier: Apache-2.0
#include "base/log_writer.h"

#include <cerrno>
#include <csignal>
#include <poll.h>
#include <unistd.h>
#include <utility>

#include "r1d/base/mutex.h"

namespace r1d::base {
namespace {

// Returns when the descriptor takes bytes again; one that was set non-blocking by somebody else may
// be full.
void wait_writable(int fd) {
  pollfd entry{.fd = fd, .events = POLLOUT, .revents = 0};
  ::poll(&entry, 1, -1);
}

// The thread must take no signal: the process waits for those elsewhere.
std::thread start_without_signals(std::function<void()> run) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  std::thread thread(std::move(run));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return thread;
}

// What cannot be written (no reader any more, a full disk) is given up.
void write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(fd, bytes.data(), bytes.size());
    if (count > 0) {
      bytes.remove_prefix(static_cast<size_t>(count));
    } else if (count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      wait_writable(fd);
    } else if (count < 0 && errno != EINTR) {
      return;
    }
  }
}

}  // namespace

struct LogWriter::State {
  State(int descriptor, size_t capacity, DescribeLoss describe)
      : fd(descriptor), capacity_bytes(capacity), describe_loss(std::move(describe)) {}

  const int fd;
  const size_t capacity_bytes;
  const DescribeLoss describe_loss;
  Mutex mu;
  CondVar changed;  // for the thread: there is work, or it should end
  CondVar idle;     // for the others: nothing is queued or under way; or the thread has ended
  std::string queue ABSL_GUARDED_BY(mu);
  int64_t num_unreported ABSL_GUARDED_BY(mu) = 0;
  int64_t num_dropped ABSL_GUARDED_BY(mu) = 0;
  bool writing ABSL_GUARDED_BY(mu) = false;
  bool stop ABSL_GUARDED_BY(mu) = false;
  bool ended ABSL_GUARDED_BY(mu) = false;

  [[nodiscard]] bool has_work() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return !queue.empty() || num_unreported > 0;
  }
};

LogWriter::LogWriter(int fd, size_t capacity_bytes, DescribeLoss describe_loss)
    : state_(std::make_shared<State>(fd, capacity_bytes, std::move(describe_loss))),
      thread_(start_without_signals([state = state_] { run(*state); })) {}

LogWriter::~LogWriter() {
  const auto deadline = std::chrono::steady_clock::now() + kLastWait;
  bool ended = false;
  {
    const MutexLock lock(state_->mu);
    state_->stop = true;
    state_->changed.notify_one();
    while (!state_->ended && std::chrono::steady_clock::now() < deadline) {
      state_->idle.wait_until(state_->mu, deadline);
    }
    ended = state_->ended;
  }
  if (ended) {
    thread_.join();
  } else {
    thread_.detach();  // nobody reads; the end of the process must not wait for that
  }
}

void LogWriter::run(State& state) {
  std::string batch;
  while (true) {
    int64_t num_lost = 0;
    {
      const MutexLock lock(state.mu);
      state.writing = false;
      if (!state.has_work()) state.idle.notify_all();
      while (!state.has_work() && !state.stop) state.changed.wait(state.mu);
      if (!state.has_work()) {
        state.ended = true;
        state.idle.notify_all();
        return;
      }
      state.writing = true;
      batch.clear();
      batch.swap(state.queue);
      num_lost = std::exchange(state.num_unreported, 0);
    }
    write_all(state.fd, batch);
    if (num_lost > 0) write_all(state.fd, state.describe_loss(num_lost));
  }
}

void LogWriter::write(std::string_view line, bool urgent) {
  const size_t room = urgent ? state_->capacity_bytes : state_->capacity_bytes / 4 * 3;
  const MutexLock lock(state_->mu);
  if (state_->queue.size() + line.size() > room) {
    ++state_->num_dropped;
    ++state_->num_unreported;
    return;
  }
  const bool was_idle = !state_->has_work() && !state_->writing;
  state_->queue += line;
  if (was_idle) state_->changed.notify_one();
}

bool LogWriter::flush(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  const MutexLock lock(state_->mu);
  while ((state_->has_work() || state_->writing) && std::chrono::steady_clock::now() < deadline) {
    state_->idle.wait_until(state_->mu, deadline);
  }
  return !state_->has_work() && !state_->writing;
}

int64_t LogWriter::num_dropped() const {
  const MutexLock lock(state_->mu);
  return state_->num_dropped;
}

}  // namespace r1d::base
