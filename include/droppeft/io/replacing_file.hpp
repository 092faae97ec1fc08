#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

#include "droppeft/core/check.hpp"

namespace droppeft {

/// A file that appears under its name, in place of any older one, only when it is whole.
///
///     ReplacingFile file(path);
///     file.write(text.data(), text.size());
///     file.commit();
///
/// It is written under a name `.droppeft-*` in the same folder, brought to the disk and then
/// renamed: whatever happens, `path` is the old file or the new one. Without commit() nothing is
/// left behind; a process that is killed meanwhile leaves the file `.droppeft-*`. A symbolic link
/// at `path` is replaced, not followed. One thread at a time; many files at once.
///
/// Throws std::runtime_error, naming the path and the system's reason, when the folder is missing
/// or something cannot be written; the old file stays, unless only the folder's own entry could not
/// be brought to the disk.
class ReplacingFile {
 public:
  explicit ReplacingFile(std::filesystem::path path) : path_(std::move(path)) {
    const auto folder = path_.has_parent_path() ? path_.parent_path() : ".";
    folder_ = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder_ < 0) fail("open the folder of");
    static std::atomic<unsigned> count = 0;
    do {
      temporary_ = folder / (".droppeft-" + std::to_string(::getpid()) + "-" +
                             std::to_string(count.fetch_add(1)));
      file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file_ < 0 && errno == EEXIST);
    if (file_ < 0) {
      const int reason = errno;
      ::close(folder_);
      errno = reason;
      fail("create");
    }
  }

  ~ReplacingFile() {
    if (file_ >= 0) {
      ::close(file_);
      ::unlink(temporary_.c_str());
    }
    ::close(folder_);
  }

  ReplacingFile(const ReplacingFile&) = delete;
  ReplacingFile& operator=(const ReplacingFile&) = delete;

  void write(const void* data, std::size_t size) {
    const char* rest = static_cast<const char*>(data);
    while (size > 0) {
      const ::ssize_t written = ::write(file_, rest, size);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) fail("write");
      rest += written;
      size -= static_cast<std::size_t>(written);
    }
  }

  /// Puts the file under its name. It is on the disk when this returns.
  void commit() {
    if (::fsync(file_) != 0) fail("write");
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("replace");
    ::close(std::exchange(file_, -1));
    // Some file systems cannot do this to a folder, and say so with EINVAL.
    if (::fsync(folder_) != 0 && errno != EINVAL) fail("make durable");
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    const std::string reason = std::generic_category().message(errno);
    throw std::runtime_error(
        detail::concatenate("cannot ", action, " ", path_.string(), ": ", reason));
  }

  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int folder_ = -1;
  int file_ = -1;
};

}  // namespace droppeft
