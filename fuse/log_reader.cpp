#include "fuse/log_reader.h"

#include "store/error.h"

#include <algorithm>
#include <cstring>

/// A log is read twice: once to find its end, what a sync covered and which records are void, then to apply. Both times
/// every checksum is checked: reading is cheaper than keeping. The window is refilled in big steps and grows only for a
/// record that does not fit, whose size is bounded.
namespace lamina::unionfs {

namespace {

using log_format::kFrameBytes;
using log_format::kHeaderBytes;

constexpr std::size_t kWindowBytes = 1024 * 1024;
static_assert(kWindowBytes > kFrameBytes + log_format::kMaxPayloadBytes);

[[noreturn]] void corrupt(const std::string& path, const std::string& why) {
    throw store::Error(store::Errc::corrupt, path + ": " + why);
}

/// Adds "after `kept`, before `mark`" to voids that are ascending and do not touch.
void add_void(LogScan& scan, std::uint64_t kept, std::uint64_t mark) {
    if (kept + 1 >= mark) return;
    while (!scan.voids.empty() && scan.voids.back().first >= kept) scan.voids.pop_back();
    if (!scan.voids.empty() && scan.voids.back().second > kept) {
        scan.voids.back().second = mark;
    } else {
        scan.voids.emplace_back(kept, mark);
    }
}

class Scanner {
public:
    Scanner(LogScan& scan, const std::string& path, const log_format::BootId& boot)
        : scan_(scan), path_(path), boot_(boot) {}

    void take(const RecordReader::Record& record) {
        codec::Reader in(record.payload.subspan(1));
        switch (record.kind()) {
            case log_format::kSyncMark: {
                const std::uint64_t covered = in.varint();
                check(in, covered < record.sequence);
                scan_.covered_sequence = std::max(scan_.covered_sequence, covered);
                break;
            }
            case log_format::kSessionMark: {
                for (std::byte& byte : boot_) byte = std::byte{in.byte()};
                const std::uint64_t kept = in.varint();
                check(in, kept < record.sequence);
                add_void(scan_, kept, record.sequence);
                break;
            }
            default:
                if (record.kind() >= log_format::kFirstMark) corrupt(path_, "a record of an unknown kind");
        }
    }
    const log_format::BootId& boot() const { return boot_; }

private:
    void check(const codec::Reader& in, bool condition) const {
        if (!in.ok() || !in.at_end() || !condition) corrupt(path_, "a mark that makes no sense");
    }
    LogScan& scan_;
    const std::string& path_;
    log_format::BootId boot_;
};

bool is_void(const LogScan& scan, std::uint64_t sequence) {
    const auto after = std::upper_bound(scan.voids.begin(), scan.voids.end(), sequence,
                                        [](std::uint64_t wanted, const auto& range) { return wanted <= range.first; });
    return after != scan.voids.begin() && sequence < std::prev(after)->second;
}

}  // namespace

RecordReader::RecordReader(int fd, std::string path, std::uint64_t limit_bytes, std::uint64_t seed)
    : fd_(fd), path_(std::move(path)), limit_bytes_(limit_bytes), chain_(seed) {}

std::span<const std::byte> RecordReader::peek(std::size_t size_bytes) {
    if (window_.size() - window_at_ < size_bytes) {
        window_.erase(window_.begin(), window_.begin() + static_cast<std::ptrdiff_t>(window_at_));
        window_at_ = 0;
        const std::size_t had = window_.size();
        const std::uint64_t file_at = end_bytes_ + had;
        const std::uint64_t left = limit_bytes_ > file_at ? limit_bytes_ - file_at : 0;
        window_.resize(had + static_cast<std::size_t>(std::min<std::uint64_t>(left, kWindowBytes)));
        const std::size_t got = store::read_some(fd_, file_at, std::span(window_).subspan(had), path_);
        window_.resize(had + got);
    }
    const auto rest = std::span<const std::byte>(window_).subspan(window_at_);
    return rest.first(std::min(rest.size(), size_bytes));
}

std::optional<RecordReader::Record> RecordReader::next() {
    auto frame = peek(kFrameBytes);
    if (frame.size() < kFrameBytes) return std::nullopt;
    const auto checksum = codec::load_little<std::uint64_t>(frame.data());
    const auto sequence = codec::load_little<std::uint64_t>(frame.data() + log_format::kFrameChecksumBytes);
    const auto size_bytes = codec::load_little<std::uint32_t>(frame.data() + 16);
    if (sequence != sequence_ + 1 || size_bytes == 0 || size_bytes > log_format::kMaxPayloadBytes) return std::nullopt;
    const auto record = peek(kFrameBytes + size_bytes);
    if (record.size() < kFrameBytes + size_bytes) return std::nullopt;
    if (log_format::checksum_of(record.subspan(log_format::kFrameChecksumBytes), chain_) != checksum) {
        return std::nullopt;
    }
    chain_ = checksum;
    sequence_ = sequence;
    end_bytes_ += record.size();
    window_at_ += record.size();
    return Record{.sequence = sequence, .payload = record.subspan(kFrameBytes)};
}

std::optional<log_format::Header> read_header(int fd, const std::string& path, const char* magic,
                                              const store::TreeDigest& tree) {
    log_format::Header header;
    if (store::read_some(fd, 0, std::as_writable_bytes(std::span(&header, 1)), path) < kHeaderBytes) {
        return std::nullopt;
    }
    if (std::memcmp(header.magic.data(), magic, header.magic.size()) != 0) {
        throw store::Error(store::Errc::malformed, path + ": not a file of this kind");
    }
    if (header.version != log_format::kVersion) {
        throw store::Error(store::Errc::malformed, path + ": version " + std::to_string(header.version) +
                                                       ", and this program knows " +
                                                       std::to_string(log_format::kVersion));
    }
    const auto checked = log_format::bytes_of(header).first(offsetof(log_format::Header, checksum));
    if (log_format::checksum_of(checked, 0) != header.checksum || header.header_bytes != kHeaderBytes) {
        corrupt(path, "its header is damaged");
    }
    if (std::memcmp(header.tree.data(), tree.digest.bytes().data(), header.tree.size()) != 0) {
        throw store::Error(store::Errc::malformed,
                           path + ": belongs to changes of another image than " + tree.digest.text());
    }
    return header;
}

LogScan scan_log(const LogSource& source, const log_format::BootId& boot, std::optional<std::uint64_t> cut_bytes) {
    LogScan scan;
    scan.is_same_boot = true;
    scan.is_absent = true;
    if (!store::exists(source.path)) return scan;
    const store::UniqueFd fd = store::open_read(source.path);
    const auto header = read_header(fd.get(), source.path, log_format::kLogMagic, source.tree);
    if (!header) return scan;
    if (header->generation != source.generation) corrupt(source.path, "names another generation");

    scan.is_absent = false;
    const std::uint64_t file_bytes = store::file_size(source.path);
    RecordReader reader(fd.get(), source.path, std::min(file_bytes, cut_bytes.value_or(file_bytes)), header->checksum);
    Scanner scanner(scan, source.path, header->boot);
    while (const auto record = reader.next()) {
        scanner.take(*record);
        scan.last_sequence = record->sequence;
    }
    scan.end_bytes = reader.end_bytes();
    scan.chain = reader.chain();
    scan.is_same_boot = scanner.boot() == boot;
    scan.kept_sequence = scan.is_same_boot ? scan.last_sequence : scan.covered_sequence;
    if (cut_bytes && *cut_bytes != scan.end_bytes) corrupt(source.path, "does not reach to where it was cut");
    if (cut_bytes) scan.kept_sequence = scan.last_sequence;
    return scan;
}

void replay_log(const LogSource& source, const LogScan& scan, const ApplyChange& apply) {
    if (scan.is_absent) return;
    const store::UniqueFd fd = store::open_read(source.path);
    const auto header = read_header(fd.get(), source.path, log_format::kLogMagic, source.tree);
    if (!header) corrupt(source.path, "became shorter while it was read");
    RecordReader reader(fd.get(), source.path, scan.end_bytes, header->checksum);
    while (const auto record = reader.next()) {
        if (record->sequence > scan.kept_sequence) return;
        if (record->kind() >= log_format::kFirstMark || is_void(scan, record->sequence)) continue;
        const auto change = change::decode(record->payload);
        const auto applied = change ? apply(*change) : fail(EINVAL);
        if (applied) continue;
        const auto what = "record " + std::to_string(record->sequence);
        if (applied.error() == Errno{EINVAL}) corrupt(source.path, what + " does not fit to those before it");
        store::throw_errno(std::to_underlying(applied.error()), source.path + ": " + what);
    }
    if (reader.end_bytes() != scan.end_bytes) corrupt(source.path, "changed while it was read");
}

}  // namespace lamina::unionfs
