#include "store/index_segment.h"

#include "store/error.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <string_view>
#include <vector>

// A look-up takes the first bits of the digest as a position in the fan-out, which says between which entries the
// digest must lie: two to four on average, so it costs one cache miss there and one or two in the entries. The fan-out
// is covered by the checksum that is checked at open; its values are compared with the entry count again at each use,
// since a checksum keeps out accidents only.
//
// The file is mapped, and a mapped page that cannot be read is a SIGBUS, which would end the process. So each page is
// read once with pread before it is touched, which turns that into an error; a bit remembers it.

namespace lamina::store {

namespace format = index_format;

namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kReadBytes = 256 * 1024;
constexpr std::size_t kPendingEntries = 16 * 1024;

[[noreturn]] void corrupt(const std::string& why) {
    throw Error(Errc::corrupt, why);
}

}  // namespace

std::shared_ptr<const IndexSegment> IndexSegment::over(std::span<const std::byte> bytes, std::uint64_t number) {
    const std::shared_ptr<IndexSegment> segment(new IndexSegment);
    segment->bytes_ = bytes;
    segment->check_head(number);
    return segment;
}

std::shared_ptr<const IndexSegment> IndexSegment::open(const std::string& path, std::uint64_t number) {
    const std::shared_ptr<IndexSegment> segment(new IndexSegment);
    segment->path_ = path;
    segment->fd_ = open_read(path);
    segment->mapped_ = MappedFile::map(segment->fd_.get(), path);
    segment->bytes_ = segment->mapped_.bytes();
    const std::size_t page_count = segment->bytes_.size() / kPageBytes + 1;
    segment->readable_pages_ = std::make_unique<std::atomic<std::uint64_t>[]>(page_count / 64 + 1);
    try {
        segment->check_head(number);
        return segment;
    } catch (const Error& error) {  // Which file it is is known here only.
        throw with_context(error, path);
    }
}

void IndexSegment::check_head(std::uint64_t number) {
    if (bytes_.size() < sizeof(format::SegmentHeader)) corrupt("too short for a segment");
    ensure_readable(0, sizeof(format::SegmentHeader));
    header_ = format::load<format::SegmentHeader>(bytes_, 0);
    if (header_.magic != format::kSegmentMagic) corrupt("no segment");
    if (header_.version != format::kVersion) corrupt("unknown version");
    if (header_.number != number) corrupt("the header names another segment");
    if (header_.entry_count > format::kMaxEntries || header_.fan_out_bits > format::kMaxFanOutBits) {
        corrupt("bad header");
    }
    const std::uint64_t entries_offset = format::entries_offset(header_.fan_out_bits);
    if (bytes_.size() != entries_offset + header_.entry_count * sizeof(format::Entry)) corrupt("bad size");
    ensure_readable(0, entries_offset);
    const auto head = bytes_.first(static_cast<std::size_t>(entries_offset));
    if (format::head_checksum(head) != header_.checksum) corrupt("bad header checksum");
    fan_out_ = bytes_.data() + sizeof header_;
    entries_ = bytes_.data() + entries_offset;
}

void IndexSegment::ensure_readable(std::uint64_t offset_bytes, std::uint64_t size_bytes) const {
    if (!fd_ || size_bytes == 0) return;
    const std::uint64_t last_page = (offset_bytes + size_bytes - 1) / kPageBytes;
    std::vector<std::byte> scratch;
    for (std::uint64_t page = offset_bytes / kPageBytes; page <= last_page;) {
        const auto bit = [](std::uint64_t at) { return std::uint64_t{1} << at % 64; };
        if (readable_pages_[page / 64].load(std::memory_order_relaxed) & bit(page)) {
            ++page;
            continue;
        }
        const std::uint64_t from = page * kPageBytes;
        const std::uint64_t end =
            std::min(from + std::min((last_page - page + 1) * kPageBytes, kReadBytes), std::uint64_t{bytes_.size()});
        scratch.resize(end - from);
        read_exact(fd_.get(), from, scratch, path_);
        for (; page * kPageBytes < end; ++page) {
            readable_pages_[page / 64].fetch_or(bit(page), std::memory_order_relaxed);
        }
    }
}

std::uint32_t IndexSegment::fan_out(std::uint64_t bucket) const {
    std::uint32_t value;
    std::memcpy(&value, fan_out_ + bucket * sizeof value, sizeof value);
    return value;
}

const format::Entry& IndexSegment::entry(std::uint64_t position) const {
    return *reinterpret_cast<const format::Entry*>(entries_ + position * sizeof(format::Entry));
}

std::uint64_t IndexSegment::entry_offset(std::uint64_t position) const {
    return static_cast<std::uint64_t>(entries_ - bytes_.data()) + position * sizeof(format::Entry);
}

void IndexSegment::prefetch(const ChunkId& chunk) const {
    const std::uint64_t bucket = format::bucket_of(format::key_of(chunk.digest.bytes().data()), header_.fan_out_bits);
    __builtin_prefetch(fan_out_ + bucket * sizeof(std::uint32_t));
}

std::optional<std::uint64_t> IndexSegment::position_of(const ChunkId& chunk) const {
    const std::byte* const digest = chunk.digest.bytes().data();
    const std::uint64_t bucket = format::bucket_of(format::key_of(digest), header_.fan_out_bits);
    std::uint64_t low = fan_out(bucket);
    std::uint64_t high = std::min<std::uint64_t>(fan_out(bucket + 1), header_.entry_count);
    while (low < high) {
        const std::uint64_t middle = low + (high - low) / 2;
        ensure_readable(entry_offset(middle), sizeof(format::Entry));
        const format::Entry& found = entry(middle);
        const int order = std::memcmp(found.digest.data(), digest, Digest::kSizeBytes);
        if (order == 0) return middle;
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return std::nullopt;
}

std::optional<ChunkPlace> IndexSegment::find(const ChunkId& chunk) const {
    const auto position = position_of(chunk);
    if (!position) return std::nullopt;
    return format::decode(entry(*position));
}

void IndexSegment::check_entries() const {
    const std::size_t size = static_cast<std::size_t>(header_.entry_count) * sizeof(format::Entry);
    ensure_readable(entry_offset(0), size);
    if (XXH3_64bits(entries_, size) != header_.entries_checksum) corrupt("bad checksum of the entries");
    if (fan_out(0) != 0 || fan_out(std::uint64_t{1} << header_.fan_out_bits) != header_.entry_count) {
        corrupt("bad fan-out");
    }
    const std::byte* before = nullptr;
    for (std::uint64_t i = 0; i < header_.entry_count; ++i) {
        const std::byte* const digest = entry(i).digest.data();
        if (before && std::memcmp(before, digest, Digest::kSizeBytes) >= 0) corrupt("entries out of order");
        const std::uint64_t bucket = format::bucket_of(format::key_of(digest), header_.fan_out_bits);
        if (i < fan_out(bucket) || i >= fan_out(bucket + 1)) corrupt("bad fan-out");
        before = digest;
    }
}

IndexSegmentWriter::IndexSegmentWriter(const std::string& path, std::uint64_t number, std::uint64_t most_entries)
    : path_(path), temporary_path_(path + ".new"), bits_(format::fan_out_bits_for(most_entries)) {
    if (most_entries > format::kMaxEntries) throw Error(Errc::unsupported, "chunk index: more than 2^32 - 1 chunks");
    header_.magic = format::kSegmentMagic;
    header_.version = format::kVersion;
    header_.fan_out_bits = bits_;
    header_.number = number;
    fan_out_.resize((std::size_t{1} << bits_) + 1);
    pending_.reserve(std::min<std::uint64_t>(most_entries, kPendingEntries));
    remove_file(temporary_path_);  // Of an earlier life that ended here.
    file_ = File::create(temporary_path_);
}

IndexSegmentWriter::~IndexSegmentWriter() {
    if (is_finished_) return;
    try {
        remove_file(temporary_path_);
    } catch (const Error&) {
        // A destructor cannot report it; strays go with the next list.
    }
}

void IndexSegmentWriter::add(const format::Entry& entry) {
    ++fan_out_[format::bucket_of(format::key_of(entry.digest.data()), bits_) + 1];
    ++header_.entry_count;
    pending_.push_back(entry);
    if (pending_.size() == kPendingEntries) flush();
}

void IndexSegmentWriter::flush() {
    const auto bytes = std::as_bytes(std::span(pending_));
    checksum_.update(bytes);
    const std::uint64_t written = header_.entry_count - pending_.size();
    file_.write_at(format::entries_offset(bits_) + written * sizeof(format::Entry), bytes);
    pending_.clear();
}

std::uint64_t IndexSegmentWriter::finish() {
    if (!pending_.empty()) flush();
    header_.entries_checksum = checksum_.value();
    for (std::size_t i = 1; i < fan_out_.size(); ++i) fan_out_[i] += fan_out_[i - 1];
    std::vector<std::byte> head(static_cast<std::size_t>(format::entries_offset(bits_)));
    const auto put_header = [&] { std::memcpy(head.data(), &header_, sizeof header_); };
    put_header();
    std::memcpy(head.data() + sizeof header_, fan_out_.data(), fan_out_.size() * sizeof(std::uint32_t));
    header_.checksum = format::head_checksum(head);
    put_header();
    file_.write_at(0, head);
    file_.publish(path_);
    is_finished_ = true;
    return header_.checksum;
}

std::string segment_path(const std::string& packs_folder, std::uint64_t number) {
    char name[48];
    std::snprintf(name, sizeof name, "/chunks-%016llx.idx", static_cast<unsigned long long>(number));
    return packs_folder + name;
}

std::optional<std::uint64_t> segment_number(const std::string& file_name) {
    constexpr std::string_view kPrefix = "chunks-";
    constexpr std::string_view kSuffix = ".idx";
    constexpr std::size_t kDigits = 16;
    if (file_name.size() != kPrefix.size() + kDigits + kSuffix.size() || !file_name.starts_with(kPrefix) ||
        !file_name.ends_with(kSuffix)) {
        return std::nullopt;
    }
    std::uint64_t number = 0;
    const char* const from = file_name.data() + kPrefix.size();
    const auto result = std::from_chars(from, from + kDigits, number, 16);
    if (result.ec != std::errc() || result.ptr != from + kDigits) return std::nullopt;
    return number;
}

}  // namespace lamina::store
