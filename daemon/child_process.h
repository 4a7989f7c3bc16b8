#pragma once

#include "store/byte_stream.h"
#include "store/file.h"

#include <sys/types.h>

#include <stop_token>
#include <string>
#include <vector>

namespace lamina::daemon {

/// A program whose standard output is read as a stream. At its end the exit status is checked: another than 0 throws
/// Errc::unavailable (75: Errc::busy, it may be tried again) with the program's last words. Destroyed early, or
/// stopped, it kills the program.
class ChildProcess : public store::ByteSource {
public:
    ChildProcess(const std::string& program, const std::vector<std::string>& arguments, std::stop_token stop);
    ~ChildProcess() override;
    ChildProcess(const ChildProcess&) = delete;
    ChildProcess& operator=(const ChildProcess&) = delete;

    std::size_t read(std::span<std::byte> out) override;
    /// Reads to the end and checks the exit status; returns what was printed, at most `limit_bytes` of it.
    std::string run_to_end(std::size_t limit_bytes);

private:
    void finish();
    std::string last_words() const;

    std::string program_;
    store::UniqueFd output_;
    store::UniqueFd errors_;  ///< A memfd: it takes what is written without a reader.
    pid_t pid_ = 0;
    std::stop_token stop_;
};

}  // namespace lamina::daemon
