#include "store/tar_files.h"

#include "store/decompressor.h"
#include "store/error.h"
#include "store/layer_stream.h"
#include "store/printable.h"
#include "store/tar_reader.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <vector>

// The headers are read by the layers' own reader, so that an archive is understood as a layer is. It is told that there
// are no bodies, and the input below steps over each of them, so that an archive of many GB costs a few reads a member.
namespace lamina::store {

namespace {

constexpr std::uint64_t kMaxMembers = 100'000;
constexpr std::size_t kWindowBytes = 16 * 1024;  // A header and what padding comes before it; grows when more is asked.
constexpr std::size_t kPieceBytes = 256 * 1024;
constexpr unsigned kMaxIdleSteps = 3;  // Of a decompressor, which may use one to see where it is.
constexpr int kMaxLinks = 8;

class HeaderInput : public TarInput {
public:
    HeaderInput(int fd, std::uint64_t size_bytes, const std::string& path)
        : fd_(fd), size_bytes_(size_bytes), path_(path) {}

    std::span<const std::byte> peek(std::size_t want_bytes) override {
        if (window_end_ - window_begin_ < want_bytes) load(want_bytes);
        return std::span(window_).subspan(window_begin_, window_end_ - window_begin_);
    }
    void consume(std::size_t bytes) override { window_begin_ += bytes; }

    std::uint64_t offset_bytes() const { return window_offset_ + window_begin_; }
    bool skip(std::uint64_t bytes) {
        const std::uint64_t at = offset_bytes();
        if (bytes > size_bytes_ - at) return false;
        window_offset_ = at + bytes;
        window_begin_ = window_end_ = 0;
        return true;
    }

private:
    void load(std::size_t want_bytes) {
        window_offset_ = offset_bytes();
        window_begin_ = window_end_ = 0;
        window_.resize(std::max(kWindowBytes, want_bytes));
        const std::uint64_t left = size_bytes_ - window_offset_;
        const std::size_t count = static_cast<std::size_t>(std::min<std::uint64_t>(window_.size(), left));
        window_end_ = read_some(fd_, window_offset_, std::span(window_).first(count), path_);
    }

    int fd_;
    std::uint64_t size_bytes_;
    const std::string& path_;
    std::uint64_t window_offset_ = 0;
    std::vector<std::byte> window_;
    std::size_t window_begin_ = 0;
    std::size_t window_end_ = 0;
};

std::uint64_t size_of(int fd, const std::string& path) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) throw_errno(errno, path);
    if (!S_ISREG(st.st_mode)) throw Error(Errc::malformed, path + ": not a regular file");
    return static_cast<std::uint64_t>(st.st_size);
}

UniqueFd open_archive(const std::string& path) {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
    if (!fd) throw_errno(errno, "open " + path);
    return fd;
}

std::string temporary_folder() {
    const char* const folder = std::getenv("TMPDIR");
    return folder && *folder == '/' ? folder : "/var/tmp";
}

UniqueFd open_nameless(const std::string& folder) {
    UniqueFd fd(::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (fd) return fd;
    std::string name = folder + "/lamina-archive-XXXXXX";  // File systems without O_TMPFILE.
    fd = UniqueFd(::mkostemp(name.data(), O_CLOEXEC));
    if (!fd) throw_errno(errno, "create a file in " + folder);
    ::unlink(name.c_str());
    return fd;
}

void write_all(int fd, std::span<const std::byte> data, const std::string& folder) {
    while (!data.empty()) {
        const ssize_t written = ::write(fd, data.data(), data.size());
        if (written < 0 && errno == EINTR) continue;
        if (written < 0) throw_errno(errno, "unpack an archive into " + folder);
        data = data.subspan(static_cast<std::size_t>(written));
    }
}

/// Unpacks `archive` from its begin. Refuses what grows as only a bomb does.
UniqueFd unpacked(int archive, const std::string& path, Compression compression) {
    const StreamLimits limits;
    const std::string folder = temporary_folder();
    UniqueFd out = open_nameless(folder);
    const auto decompressor = Decompressor::make(compression, limits);
    std::vector<std::byte> in_buffer(kPieceBytes);
    std::vector<std::byte> out_buffer(kPieceBytes);
    std::uint64_t read_bytes = 0;
    std::uint64_t made_bytes = 0;
    std::span<const std::byte> in;
    bool is_at_end = false;
    for (unsigned idle_steps = 0; idle_steps <= kMaxIdleSteps;) {
        if (in.empty() && !is_at_end) {
            const std::size_t got = read_some(archive, read_bytes, in_buffer, path);
            is_at_end = got == 0;
            read_bytes += got;
            in = std::span(in_buffer).first(got);
        }
        const Decompressor::Step step = decompressor->step(in, out_buffer);
        in = in.subspan(step.used_bytes);
        made_bytes += step.made_bytes;
        if (made_bytes > limits.ratio * read_bytes + limits.slack_bytes) {
            throw Error(Errc::malformed, "unpacks to more than " + std::to_string(limits.ratio) + " times its size");
        }
        write_all(out.get(), std::span(out_buffer).first(step.made_bytes), folder);
        idle_steps = step.used_bytes == 0 && step.made_bytes == 0 ? idle_steps + 1 : 0;
        if (idle_steps == 0 || !in.empty() || !is_at_end) continue;
        decompressor->end();
        return out;
    }
    throw Error(Errc::malformed, "does not decompress");
}

std::string folder_in_archive(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash);
}

/// Where a symbolic link in `folder` leads, "" when that is outside of the archive.
std::string link_path(const std::string& folder, const std::string& link) {
    if (link.starts_with('/')) return "";
    std::string path = folder;
    std::size_t begin = 0;
    while (begin <= link.size()) {
        const std::string name = link.substr(begin, link.find('/', begin) - begin);
        begin += name.size() + 1;
        if (name.empty() || name == ".") continue;
        if (name != "..") {
            path += (path.empty() ? "" : "/") + name;
        } else if (path.empty()) {
            return "";
        } else {
            path = folder_in_archive(path);
        }
    }
    return path;
}

}  // namespace

TarFiles::TarFiles(const std::string& path, Links links) : archive_(path), links_(links), fd_(open_archive(path)) {
    try {
        size_bytes_ = size_of(fd_.get(), path);
        std::array<std::byte, 4> begin{};
        const std::size_t got = read_some(fd_.get(), 0, begin, path);
        const Compression compression = compression_of(std::span(begin).first(got));
        if (compression != Compression::none) {
            fd_ = unpacked(fd_.get(), path, compression);
            size_bytes_ = size_of(fd_.get(), path);
        }
        read_members();
    } catch (const Error& error) {  // Which archive it was.
        if (std::string_view(error.what()).starts_with(path)) throw;
        throw with_context(error, path);
    }
}

void TarFiles::read_members() {
    LayerLimits limits;
    limits.entries = kMaxMembers;
    HeaderInput input(fd_.get(), size_bytes_, archive_);
    LayerReader reader(input, limits, nullptr, LayerReader::Bodies::absent);
    while (std::optional<TarEntry> entry = reader.next()) {
        Member member{.offset_bytes = input.offset_bytes(), .size_bytes = entry->stored_bytes};
        if (entry->entry.is_hardlink) {
            member.kind = Member::Kind::hardlink;
            member.link = entry->entry.hardlink_target;
        } else if (entry->entry.metadata.type == FileType::symlink) {
            member.kind = Member::Kind::symlink;
            member.link = entry->entry.metadata.link_target;
        } else if (entry->entry.metadata.type == FileType::regular && !entry->is_sparse) {
            member.kind = Member::Kind::file;
        }
        if (!input.skip(entry->stored_bytes)) {
            throw Error(Errc::malformed, quote(entry->entry.path) + ": the archive ends within it");
        }
        const auto [found, is_new] = members_.emplace(entry->entry.path, member);
        // Readers differ in which of two they take. Folders may well be named twice.
        const bool is_same = found->second.kind == Member::Kind::other && member.kind == Member::Kind::other;
        if (!is_new && !is_same) found->second.kind = Member::Kind::ambiguous;
    }
}

std::string TarFiles::describe(std::string_view path) const {
    const std::string safe = quote(path);
    return archive_ + ": " + (safe.size() == path.size() + 2 ? std::string(path) : safe);
}

bool TarFiles::has(const std::string& path) const {
    return members_.contains(path);
}

std::string TarFiles::resolved(const std::string& path) const {
    std::string at = path;
    for (int links = 0; links <= kMaxLinks; ++links) {
        const auto found = members_.find(at);
        if (found == members_.end()) {
            const std::string reason = at == path ? "missing" : "a link to " + quote(at) + ", which is missing";
            throw Error(Errc::not_found, describe(path) + ": " + reason);
        }
        const Member& member = found->second;
        const bool is_symlink = member.kind == Member::Kind::symlink;
        if (!is_symlink && member.kind != Member::Kind::hardlink) return at;
        if (links_ == Links::refuse) throw Error(Errc::malformed, describe(path) + ": a link; links are not followed");
        at = is_symlink ? link_path(folder_in_archive(at), member.link) : member.link;
        if (at.empty()) throw Error(Errc::malformed, describe(path) + ": a link out of the archive");
    }
    throw Error(Errc::malformed, describe(path) + ": more than " + std::to_string(kMaxLinks) + " links in a row");
}

SourceFiles::OpenFile TarFiles::open(const std::string& path) const {
    const Member& member = members_.at(resolved(path));
    if (member.kind == Member::Kind::ambiguous) throw Error(Errc::malformed, describe(path) + ": occurs twice");
    if (member.kind != Member::Kind::file) throw Error(Errc::malformed, describe(path) + ": not a regular file");
    OpenFile file{.size_bytes = member.size_bytes};
    file.first_bytes.resize(static_cast<std::size_t>(std::min<std::uint64_t>(4, member.size_bytes)));
    read_exact(fd_.get(), member.offset_bytes, file.first_bytes, describe(path));
    UniqueFd fd(::fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
    if (!fd) throw_errno(errno, describe(path));
    file.bytes =
        std::make_unique<FileRangeSource>(std::move(fd), member.offset_bytes, member.size_bytes, describe(path));
    return file;
}

}  // namespace lamina::store
