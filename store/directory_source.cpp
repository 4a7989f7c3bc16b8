#include "store/directory_source.h"

#include "store/error.h"
#include "store/file.h"
#include "store/layer_importer.h"
#include "store/printable.h"
#include "store/tar_writer.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <optional>
#include <utility>
#include <vector>

// The tar is made while it is read: each read() that finds nothing left takes one step (the next name, or the next
// piece of a file), whose output it then hands on. Every name is first opened with O_PATH and O_NOFOLLOW; type,
// attributes and bytes are all taken from that descriptor (through /proc/self/fd), so that nothing can be exchanged in
// between, and no device is ever opened.
namespace lamina::store {

namespace {

constexpr std::size_t kPieceBytes = 256 * 1024;
constexpr std::size_t kMaxDepth = 256;  // Each level holds a descriptor.
constexpr std::size_t kMaxXattrBytes = 64 * 1024;
constexpr std::size_t kMaxDataRanges = 100'000;  // A file of more holes than that is written whole.
constexpr std::uint64_t kSparseUnitBytes = 512;
constexpr std::string_view kWhiteoutPrefix = ".wh.";
constexpr std::string_view kSelinuxLabel = "security.selinux";

std::string descriptor_path(int fd) {
    return "/proc/self/fd/" + std::to_string(fd);
}

Timestamp timestamp_of(const timespec& time) {
    return {.seconds = time.tv_sec, .nanoseconds = static_cast<std::uint32_t>(time.tv_nsec)};
}

FileType type_of(mode_t mode) {
    switch (mode & S_IFMT) {
        case S_IFDIR:
            return FileType::directory;
        case S_IFLNK:
            return FileType::symlink;
        case S_IFCHR:
            return FileType::char_device;
        case S_IFBLK:
            return FileType::block_device;
        case S_IFIFO:
            return FileType::fifo;
        case S_IFSOCK:
            return FileType::socket;
        default:
            return FileType::regular;
    }
}

std::vector<std::string> names_in(int folder, const std::string& path_for_errors) {
    const int fd = ::open(descriptor_path(folder).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) throw_errno(errno, "open " + path_for_errors);
    const auto close_folder = [](DIR* open_folder) { ::closedir(open_folder); };
    const std::unique_ptr<DIR, decltype(close_folder)> stream(::fdopendir(fd), close_folder);
    if (!stream) {
        ::close(fd);
        throw_errno(errno, "open " + path_for_errors);
    }
    std::vector<std::string> names;
    errno = 0;
    while (const dirent* const entry = ::readdir(stream.get())) {
        const std::string_view name = entry->d_name;
        if (name != "." && name != "..") names.emplace_back(name);
        errno = 0;
    }
    if (errno != 0) throw_errno(errno, "list " + path_for_errors);
    std::sort(names.begin(), names.end());
    return names;
}

std::map<std::string, std::string> xattrs_of(int fd, const std::string& path_for_errors) {
    const std::string path = descriptor_path(fd);
    ssize_t list_bytes = ::listxattr(path.c_str(), nullptr, 0);
    if (list_bytes == 0 || (list_bytes < 0 && errno == ENOTSUP)) return {};
    std::string list(kMaxXattrBytes, '\0');
    list_bytes = ::listxattr(path.c_str(), list.data(), list.size());
    if (list_bytes < 0) throw_errno(errno, "list xattrs of " + path_for_errors);
    list.resize(static_cast<std::size_t>(list_bytes));
    std::map<std::string, std::string> xattrs;
    for (std::size_t begin = 0; begin < list.size();) {
        const std::string name = list.c_str() + begin;
        begin += name.size() + 1;
        if (name == kSelinuxLabel) continue;
        std::string value(kMaxXattrBytes, '\0');
        const ssize_t value_bytes = ::getxattr(path.c_str(), name.c_str(), value.data(), value.size());
        if (value_bytes < 0 && errno == ENODATA) continue;  // Taken away since it was listed.
        if (value_bytes < 0) throw_errno(errno, "read xattr " + quote(name) + " of " + path_for_errors);
        value.resize(static_cast<std::size_t>(value_bytes));
        xattrs.emplace(name, std::move(value));
    }
    return xattrs;
}

/// The data ranges of a file with holes, as TarWriter wants them; empty when it has none worth the name.
std::vector<TarWriter::Range> data_ranges(int fd, std::uint64_t size_bytes) {
    std::vector<TarWriter::Range> ranges;
    off_t at = 0;
    while (static_cast<std::uint64_t>(at) < size_bytes) {
        const off_t data = ::lseek(fd, at, SEEK_DATA);
        if (data < 0 && errno != ENXIO) return {};
        if (data < 0 || static_cast<std::uint64_t>(data) >= size_bytes) break;
        const off_t hole = ::lseek(fd, data, SEEK_HOLE);
        if (hole <= data) return {};
        const std::uint64_t begin = static_cast<std::uint64_t>(data) / kSparseUnitBytes * kSparseUnitBytes;
        const std::uint64_t unit_end = (static_cast<std::uint64_t>(hole) + kSparseUnitBytes - 1) / kSparseUnitBytes;
        const std::uint64_t end = std::min(unit_end * kSparseUnitBytes, size_bytes);
        if (!ranges.empty() && begin <= ranges.back().offset_bytes + ranges.back().size_bytes) {
            ranges.back().size_bytes = end - ranges.back().offset_bytes;
        } else {
            ranges.push_back({begin, end - begin});
        }
        if (ranges.size() > kMaxDataRanges) return {};
        at = hole;
    }
    const bool is_whole = ranges.size() == 1 && ranges.front().size_bytes == size_bytes;
    if (is_whole || size_bytes == 0) return {};
    if (ranges.empty()) ranges.push_back({size_bytes, 0});
    return ranges;
}

class DirectoryTar : public ByteSource {
public:
    explicit DirectoryTar(std::string folder) : folder_(std::move(folder)), tar_(sink_), piece_(kPieceBytes) {}

    std::size_t read(std::span<std::byte> out) override {
        while (sink_.used_bytes == sink_.data.size()) {
            if (is_finished_) return 0;
            sink_.data.clear();
            sink_.used_bytes = 0;
            step();
        }
        const std::size_t count = std::min(out.size(), sink_.data.size() - sink_.used_bytes);
        std::copy_n(sink_.data.begin() + static_cast<std::ptrdiff_t>(sink_.used_bytes), count, out.begin());
        sink_.used_bytes += count;
        return count;
    }

private:
    struct Buffer : ByteSink {
        void write(std::span<const std::byte> more) override { data.insert(data.end(), more.begin(), more.end()); }
        std::vector<std::byte> data;
        std::size_t used_bytes = 0;  ///< By read().
    };
    struct Level {
        UniqueFd fd;       ///< O_PATH.
        std::string path;  ///< In the layer.
        std::vector<std::string> names;
        std::size_t next = 0;
    };
    /// The file whose bytes are being written.
    struct Body {
        UniqueFd fd;
        std::string shown;
        struct stat st;
        std::vector<TarWriter::Range> ranges;
        std::size_t range = 0;
        std::uint64_t done_bytes = 0;  ///< Of the range.
    };

    void step();
    void begin_root();
    void add_name(const Level& level, const std::string& name);
    void enter(UniqueFd fd, const std::string& path);
    void begin_file(UniqueFd fd, const struct stat& st, LayerEntry entry);
    void continue_body();
    LayerEntry describe(int fd, const struct stat& st, const std::string& path) const;
    std::string shown(const std::string& path) const;

    std::string folder_;
    Buffer sink_;
    TarWriter tar_;
    std::vector<Level> levels_;
    std::optional<Body> body_;
    std::map<std::pair<dev_t, ino_t>, std::string> linked_;  ///< Files with several names: the first of them.
    std::vector<std::byte> piece_;
    bool is_begun_ = false;
    bool is_finished_ = false;
};

std::string DirectoryTar::shown(const std::string& path) const {
    const std::string safe = quote(path, 300);
    return folder_ + "/" + (safe.size() == path.size() + 2 ? path : safe);
}

void DirectoryTar::step() {
    if (body_) return continue_body();
    if (!is_begun_) return begin_root();
    while (!levels_.empty() && levels_.back().next == levels_.back().names.size()) levels_.pop_back();
    if (levels_.empty()) {
        tar_.finish();
        is_finished_ = true;
        return;
    }
    Level& level = levels_.back();
    const std::string name = level.names[level.next++];
    add_name(level, name);
}

void DirectoryTar::begin_root() {
    is_begun_ = true;
    UniqueFd fd(::open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!fd) throw_errno(errno, "open " + folder_);
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) throw_errno(errno, "stat " + folder_);
    tar_.begin(describe(fd.get(), st, ""));
    enter(std::move(fd), "");
}

void DirectoryTar::enter(UniqueFd fd, const std::string& path) {
    if (levels_.size() == kMaxDepth) {
        throw Error(Errc::malformed, shown(path) + ": folders nested deeper than " + std::to_string(kMaxDepth));
    }
    std::vector<std::string> names = names_in(fd.get(), shown(path));
    levels_.push_back({.fd = std::move(fd), .path = path, .names = std::move(names)});
}

LayerEntry DirectoryTar::describe(int fd, const struct stat& st, const std::string& path) const {
    LayerEntry entry{.path = path};
    entry.metadata = {.type = type_of(st.st_mode),
                      .mode = st.st_mode & 07777,
                      .uid = st.st_uid,
                      .gid = st.st_gid,
                      .mtime = timestamp_of(st.st_mtim),
                      .xattrs = xattrs_of(fd, shown(path))};
    if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
        entry.metadata.device_major = major(st.st_rdev);
        entry.metadata.device_minor = minor(st.st_rdev);
    }
    if (S_ISLNK(st.st_mode)) {
        std::string target(4096, '\0');
        const ssize_t size = ::readlinkat(fd, "", target.data(), target.size());
        if (size < 0) throw_errno(errno, "read link " + shown(path));
        target.resize(static_cast<std::size_t>(size));
        entry.metadata.link_target = target;
    }
    return entry;
}

void DirectoryTar::add_name(const Level& level, const std::string& name) {
    const std::string path = level.path.empty() ? name : level.path + "/" + name;
    if (name.starts_with(kWhiteoutPrefix)) {
        throw Error(Errc::malformed, shown(path) + ": a name in a layer must not begin with \".wh.\"");
    }
    if (path.size() > LayerLimits{}.path_bytes) {
        throw Error(Errc::malformed, shown(path) + ": longer than " + std::to_string(LayerLimits{}.path_bytes));
    }
    UniqueFd fd(::openat(level.fd.get(), name.c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
    if (!fd) throw_errno(errno, "open " + shown(path));
    struct stat st {};
    if (::fstat(fd.get(), &st) != 0) throw_errno(errno, "stat " + shown(path));
    if (S_ISSOCK(st.st_mode)) return;
    LayerEntry entry = describe(fd.get(), st, path);
    if (S_ISDIR(st.st_mode)) {
        tar_.begin(entry);
        return enter(std::move(fd), path);
    }
    if (st.st_nlink > 1) {
        const auto [found, is_first] = linked_.emplace(std::pair(st.st_dev, st.st_ino), path);
        entry.is_hardlink = !is_first;
        if (!is_first) entry.hardlink_target = found->second;
    }
    if (S_ISREG(st.st_mode) && !entry.is_hardlink) return begin_file(std::move(fd), st, std::move(entry));
    tar_.begin(entry);
}

void DirectoryTar::begin_file(UniqueFd fd, const struct stat& st, LayerEntry entry) {
    entry.size_bytes = static_cast<std::uint64_t>(st.st_size);
    Body body{.shown = shown(entry.path), .st = st};
    body.fd = UniqueFd(::open(descriptor_path(fd.get()).c_str(), O_RDONLY | O_CLOEXEC));
    if (!body.fd) throw_errno(errno, "open " + body.shown);
    if (static_cast<std::uint64_t>(st.st_blocks) * 512 < entry.size_bytes) {
        body.ranges = data_ranges(body.fd.get(), entry.size_bytes);
    }
    tar_.begin(entry, body.ranges);
    if (body.ranges.empty()) body.ranges.push_back({0, entry.size_bytes});
    body_ = std::move(body);
}

void DirectoryTar::continue_body() {
    Body& body = *body_;
    const TarWriter::Range& range = body.ranges[body.range];
    const std::uint64_t left = range.size_bytes - body.done_bytes;
    const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(left, piece_.size()));
    const std::span<std::byte> piece = std::span(piece_).first(count);
    const auto changed = [&] { return Error(Errc::unavailable, body.shown + ": it changes while it is read"); };
    if (read_some(body.fd.get(), range.offset_bytes + body.done_bytes, piece, body.shown) != count) throw changed();
    tar_.write_body(piece);
    body.done_bytes += count;
    if (body.done_bytes < range.size_bytes) return;
    body.done_bytes = 0;
    if (++body.range < body.ranges.size()) return;
    struct stat st {};
    if (::fstat(body.fd.get(), &st) != 0) throw_errno(errno, "stat " + body.shown);
    const bool is_same = st.st_size == body.st.st_size && timestamp_of(st.st_mtim) == timestamp_of(body.st.st_mtim);
    if (!is_same) throw changed();
    body_.reset();
}

}  // namespace

DirectorySource::DirectorySource(std::string folder) : folder_(std::move(folder)) {
    while (folder_.size() > 1 && folder_.ends_with('/')) folder_.pop_back();
}

std::vector<SourceImage> DirectorySource::images() {
    return {SourceImage{.layers = {SourceLayer{}}}};
}

std::unique_ptr<ByteSource> DirectorySource::open_layer(std::size_t, std::size_t) {
    return std::make_unique<DirectoryTar>(folder_);
}

}  // namespace lamina::store
