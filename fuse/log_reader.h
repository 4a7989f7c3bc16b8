#pragma once

#include "fuse/change.h"
#include "fuse/log_format.h"
#include "fuse/result.h"
#include "store/file.h"

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace lamina::unionfs {

/// Reads the framed records of a log or checkpoint in order, up to the first that is torn or damaged. Hostile bytes are
/// bounds-checked. Throws store::Error when the disk fails. One thread.
class RecordReader {
public:
    /// `seed` is the checksum in the file's header.
    RecordReader(int fd, std::string path, std::uint64_t limit_bytes, std::uint64_t seed);
    struct Record {
        std::uint64_t sequence = 0;
        std::span<const std::byte> payload;  ///< Until the next call; at least one byte.
        std::uint8_t kind() const { return std::to_integer<std::uint8_t>(payload.front()); }
    };
    std::optional<Record> next();
    std::uint64_t end_bytes() const noexcept { return end_bytes_; }  ///< Behind the last record that was returned.
    std::uint64_t chain() const noexcept { return chain_; }          ///< Its checksum.

private:
    std::span<const std::byte> peek(std::size_t size_bytes);

    int fd_;
    std::string path_;
    std::uint64_t limit_bytes_;
    std::uint64_t end_bytes_ = log_format::kHeaderBytes;
    std::uint64_t chain_;
    std::uint64_t sequence_ = 0;
    std::vector<std::byte> window_;
    std::size_t window_at_ = 0;  ///< Of window_, where end_bytes_ lies.
};

/// What a log holds, found without applying anything.
struct LogScan {
    bool is_absent = false;  ///< No file, or one whose header never reached the disk: nothing was ever synced.
    std::uint64_t end_bytes = 0;
    std::uint64_t last_sequence = 0;
    std::uint64_t chain = 0;
    std::uint64_t kept_sequence = 0;     ///< Records behind it do not count.
    std::uint64_t covered_sequence = 0;  ///< Up to here all is durable.
    bool is_same_boot = false;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> voids;  ///< Records after .first and before .second are void.
};

struct LogSource {
    std::string path;
    store::TreeDigest tree;
    std::uint64_t generation = 1;
};

/// Checks header and records. `cut_bytes`: only so much of the log counts, and all of that does (a cut of a live
/// mount). malformed: not a log, or of another version; corrupt: a damaged header, or an end of a cut inside of a
/// record; "belongs to another image" is malformed as well.
LogScan scan_log(const LogSource& source, const log_format::BootId& boot, std::optional<std::uint64_t> cut_bytes);

using ApplyChange = std::function<Result<void>(const change::Change&)>;
/// Applies the changes that count. corrupt: one that does not decode or that `apply` refuses.
void replay_log(const LogSource& source, const LogScan& scan, const ApplyChange& apply);

/// Reads and checks a header. nullopt: the file is shorter than one.
std::optional<log_format::Header> read_header(int fd, const std::string& path, const char* magic,
                                              const store::TreeDigest& tree);

}  // namespace lamina::unionfs
