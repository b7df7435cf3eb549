// SPDX-License-Identifier: Apache-2.0
#include "cli/bench/raw_read.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <fcntl.h>
#include <filesystem>
#include <memory>
#include <sys/stat.h>
#include <system_error>
#include <thread>
#include <unistd.h>

#include "r1d/base/clock.h"
#include "r1d/base/status.h"

namespace r1d::cli::bench {
namespace {

constexpr int64_t kReadBytes = 4 << 20;
constexpr size_t kBlock = 4096;

struct Free {
  void operator()(std::byte* data) const { std::free(data); }
};

class OpenFile {
 public:
  OpenFile(const std::string& path, int flags)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags)), error_(errno) {}
  ~OpenFile() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;
  [[nodiscard]] int descriptor() const { return descriptor_; }
  [[nodiscard]] bool is_open() const { return descriptor_ >= 0; }
  [[nodiscard]] int error() const { return error_; }

 private:
  int descriptor_;
  int error_;
};

absl::Status failed(const std::string& path, const char* call, int error) {
  return data_loss("{}: {}: {}", path, call, std::generic_category().message(error));
}

struct Piece {
  size_t file = 0;
  int64_t offset = 0;
  int64_t bytes = 0;
};

// The reads of all threads.
class RawReader {
 public:
  static absl::StatusOr<std::unique_ptr<RawReader>> open(const std::vector<std::string>& paths,
                                                         bool direct) {
    auto reader = std::make_unique<RawReader>(paths);
    for (const std::string& path : paths) {
      reader->files_.push_back(std::make_unique<OpenFile>(path, direct ? O_DIRECT : 0));
      const OpenFile& file = *reader->files_.back();
      if (!file.is_open()) return failed(path, "open", file.error());
      struct stat info = {};
      if (::fstat(file.descriptor(), &info) != 0) return failed(path, "fstat", errno);
      reader->add(info.st_size);
    }
    return reader;
  }

  explicit RawReader(const std::vector<std::string>& paths) : paths_(paths) {}

  [[nodiscard]] int64_t bytes() const { return bytes_; }

  absl::Status read() {
    const std::unique_ptr<std::byte, Free> buffer(
        static_cast<std::byte*>(std::aligned_alloc(kBlock, kReadBytes)));
    if (buffer == nullptr) return resource_exhausted("no {} bytes to read to", kReadBytes);
    while (true) {
      const size_t next = next_.fetch_add(1);
      if (next >= pieces_.size()) return absl::OkStatus();
      R1D_RETURN_IF_ERROR(read_piece(pieces_[next], buffer.get()));
    }
  }

 private:
  void add(int64_t size) {
    for (int64_t offset = 0; offset < size; offset += kReadBytes) {
      pieces_.push_back({files_.size() - 1, offset, std::min(kReadBytes, size - offset)});
    }
    bytes_ += size;
  }

  // Asks for whole blocks, also at the end of a file, as a direct read must.
  absl::Status read_piece(const Piece& piece, std::byte* buffer) {
    for (int64_t done = 0; done < piece.bytes;) {
      const ssize_t count = ::pread(files_[piece.file]->descriptor(),
                                    buffer + done,
                                    static_cast<size_t>(kReadBytes - done),
                                    piece.offset + done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return failed(paths_[piece.file], "pread", errno);
      if (count == 0) return data_loss("{}: ends too early", paths_[piece.file]);
      done += count;
    }
    return absl::OkStatus();
  }

  const std::vector<std::string>& paths_;
  std::vector<std::unique_ptr<OpenFile>> files_;
  std::vector<Piece> pieces_;
  int64_t bytes_ = 0;
  std::atomic<size_t> next_{0};
};

}  // namespace

absl::StatusOr<std::vector<std::string>> weight_files(const std::string& dir) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(dir, error)) {
    const auto extension = entry.path().extension();
    if (extension == ".safetensors" || extension == ".r1dpack") {
      files.push_back(entry.path().string());
    }
  }
  if (files.empty()) return not_found("{}: has no .safetensors or .r1dpack files", dir);
  std::sort(files.begin(), files.end());
  return files;
}

absl::Status drop_from_cache(const std::vector<std::string>& files) {
  for (const std::string& path : files) {
    const OpenFile file(path, 0);
    if (!file.is_open()) return failed(path, "open", file.error());
    // Only pages that are on the disk can be dropped.
    if (::fdatasync(file.descriptor()) != 0) return failed(path, "fdatasync", errno);
    const int error = ::posix_fadvise(file.descriptor(), 0, 0, POSIX_FADV_DONTNEED);
    if (error != 0) return failed(path, "posix_fadvise", error);
  }
  return absl::OkStatus();
}

absl::StatusOr<RawRead> read_raw(const std::vector<std::string>& files,
                                 bool direct,
                                 int32_t num_threads) {
  R1D_ASSIGN_OR_RETURN(const auto reader, RawReader::open(files, direct));
  const SteadyClock clock;
  const TimePoint start = clock.now();
  std::vector<absl::Status> outcomes(static_cast<size_t>(num_threads));
  std::vector<std::thread> threads;
  for (absl::Status& outcome : outcomes) {
    threads.emplace_back([&reader = *reader, &outcome] { outcome = reader.read(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& outcome : outcomes) R1D_RETURN_IF_ERROR(outcome);
  return RawRead{.bytes = reader->bytes(), .seconds = seconds_between(start, clock.now())};
}

}  // namespace r1d::cli::bench
