#include "support/view_manifest.h"

#include "store/digest.h"
#include "store/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

using namespace lamina::unionfs;

namespace lamina::test {
namespace {

std::string printable(std::string_view text) {
    std::string out;
    for (const char c : text) {
        if (c < ' ' || c > '~' || c == '\\') {
            out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
        } else {
            out += c;
        }
    }
    return out;
}

/// What a line says, from either side.
struct Line {
    Attributes attributes;
    std::uint64_t listed_number = 0;
    std::uint32_t listed_type = 0;
    std::string target;
    std::string content;  ///< Digest.
    std::string data_map;
    std::map<std::string, std::string> xattrs;
};

std::string text_of(const Line& line, const ManifestOptions& options) {
    const Attributes& a = line.attributes;
    const bool is_directory = S_ISDIR(a.mode);
    std::string text = fmt::format("{:o} {}:{} {}.{:09}", a.mode, a.uid, a.gid, a.mtime.seconds, a.mtime.nanoseconds);
    if (!is_directory) text += fmt::format(" size {} links {}", a.size_bytes, a.nlink);
    if (S_ISREG(a.mode) && options.has_blocks) text += fmt::format(" blocks {}", a.allocated_bytes / 512);
    if (options.has_numbers) text += fmt::format(" number {} listed {}", a.shown_number(), line.listed_number);
    if (line.listed_type != (a.mode & S_IFMT)) text += fmt::format(" listed as {:o}", line.listed_type);
    if (S_ISCHR(a.mode) || S_ISBLK(a.mode)) text += fmt::format(" device {}", a.device);
    if (!line.target.empty()) text += " -> " + printable(line.target);
    text += line.content;
    if (options.has_data_map) text += line.data_map;
    for (const auto& [name, value] : line.xattrs) text += " " + printable(name) + "=" + printable(value);
    return text;
}

/// "offset+size" of each run of data, from functions that say where data and holes begin.
template <class Seek>
std::string data_map(std::uint64_t size_bytes, Seek&& seek) {
    std::string text;
    for (std::uint64_t at = 0; at < size_bytes;) {
        const Result<std::uint64_t> data = seek(at, true);
        if (!data) break;
        const Result<std::uint64_t> hole = seek(*data, false);
        if (!hole || *hole <= *data) return text + " data ?";
        text += fmt::format(" data {}+{}", *data, *hole - *data);
        at = *hole;
    }
    return text;
}

std::string error_text(Errno error) {
    return fmt::format("error {}", std::to_underlying(error));
}

// A view.

std::string content_of(const View& view, NodeId node, std::uint64_t size_bytes) {
    std::vector<std::byte> bytes(size_bytes);
    const auto got = view.read(node, 0, bytes);
    if (!got) return " content " + error_text(got.error());
    if (*got != bytes.size()) return " content short";
    return " " + store::Digest::of(bytes).text().substr(7, 16);
}

std::string line_of(const View& view, NodeId node, const ViewEntry& listed, const ManifestOptions& options) {
    const auto attributes = view.attributes(node);
    if (!attributes) return error_text(attributes.error());
    Line line{.attributes = *attributes,
              .listed_number = listed.number != 0 ? listed.number : listed.node,
              .listed_type = listed.type,
              .target = {},
              .content = {},
              .data_map = {},
              .xattrs = {}};
    if (S_ISLNK(attributes->mode)) {
        const auto target = view.link_target(node);
        line.target = target ? std::string(*target) : error_text(target.error());
    }
    if (S_ISREG(attributes->mode)) {
        line.content = content_of(view, node, attributes->size_bytes);
        line.data_map = data_map(attributes->size_bytes, [&](std::uint64_t at, bool is_data) {
            return is_data ? view.seek_data(node, at) : view.seek_hole(node, at);
        });
    }
    const auto xattrs = view.xattrs(node);
    if (!xattrs) return error_text(xattrs.error());
    for (const auto& [name, value] : *xattrs) line.xattrs.emplace(name, value);
    return text_of(line, options);
}

void walk(const View& view, NodeId directory, const std::string& path, const ManifestOptions& options,
          std::map<std::string, std::string>& lines) {
    const auto count = view.entry_count(directory);
    if (!count) {
        lines[path + "/"] = error_text(count.error());
        return;
    }
    for (std::uint32_t position = 0; position < *count; ++position) {
        const auto listed = view.entry(directory, position);
        if (!listed) {
            lines[path + "/?"] = error_text(listed.error());
            continue;
        }
        const std::string below = path + "/" + printable(listed->name);
        const auto found = view.lookup(directory, listed->name);
        if (!found || !*found) {
            lines[below] = found ? "listed, but not there" : error_text(found.error());
            continue;
        }
        lines[below] = line_of(view, (*found)->node, *listed, options);
        if (S_ISDIR((*found)->type)) walk(view, (*found)->node, below, options, lines);
    }
}

// A folder.

Attributes to_attributes(const struct stat& st) {
    Attributes a;
    a.number = st.st_ino;
    a.mode = st.st_mode;
    a.uid = st.st_uid;
    a.gid = st.st_gid;
    a.nlink = static_cast<std::uint32_t>(st.st_nlink);
    a.size_bytes = static_cast<std::uint64_t>(st.st_size);
    a.allocated_bytes = static_cast<std::uint64_t>(st.st_blocks) * 512;
    a.device = S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode) ? st.st_rdev : 0;
    a.mtime = {.seconds = st.st_mtim.tv_sec, .nanoseconds = static_cast<std::uint32_t>(st.st_mtim.tv_nsec)};
    return a;
}

void read_content(const std::string& path, Line& line) {
    const store::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) {
        line.content = " content " + error_text(Errno{errno});
        return;
    }
    std::vector<std::byte> bytes(line.attributes.size_bytes);
    const ssize_t got = ::pread(fd.get(), bytes.data(), bytes.size(), 0);
    line.content =
        got < 0 ? " content " + error_text(Errno{errno}) : " " + store::Digest::of(bytes).text().substr(7, 16);
    line.data_map = data_map(bytes.size(), [&](std::uint64_t at, bool is_data) -> Result<std::uint64_t> {
        const off_t found = ::lseek(fd.get(), static_cast<off_t>(at), is_data ? SEEK_DATA : SEEK_HOLE);
        if (found < 0) return fail(errno);
        return static_cast<std::uint64_t>(found);
    });
}

void read_xattrs(const std::string& path, Line& line) {
    std::vector<char> names(65536);
    const ssize_t got = ::llistxattr(path.c_str(), names.data(), names.size());
    for (ssize_t at = 0; at < got;) {
        const std::string name(names.data() + at);
        at += static_cast<ssize_t>(name.size()) + 1;
        std::string value(65536, '\0');
        const ssize_t size = ::lgetxattr(path.c_str(), name.c_str(), value.data(), value.size());
        value.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
        line.xattrs.emplace(name, value);
    }
}

void walk(const std::string& folder, const std::string& path, const ManifestOptions& options,
          std::map<std::string, std::string>& lines) {
    const std::unique_ptr<DIR, int (*)(DIR*)> opened(::opendir(folder.c_str()), ::closedir);
    if (!opened) {
        lines[path + "/"] = error_text(Errno{errno});
        return;
    }
    while (const dirent* const entry = ::readdir(opened.get())) {
        const std::string name(entry->d_name);
        if (name == "." || name == "..") continue;
        const std::string full = folder + "/" + name;
        const std::string below = path + "/" + printable(name);
        struct stat st {};
        if (::lstat(full.c_str(), &st) != 0) {
            // In a directory that only one layer has, overlayfs lists whiteouts, but there is nothing behind them.
            if (errno != ENOENT) lines[below] = error_text(Errno{errno});
            continue;
        }
        Line line{.attributes = to_attributes(st),
                  .listed_number = entry->d_ino,
                  .listed_type = static_cast<std::uint32_t>(DTTOIF(entry->d_type)),
                  .target = {},
                  .content = {},
                  .data_map = {},
                  .xattrs = {}};
        if (S_ISLNK(st.st_mode)) {
            line.target.resize(4096);
            const ssize_t size = ::readlink(full.c_str(), line.target.data(), line.target.size());
            line.target.resize(size < 0 ? 0 : static_cast<std::size_t>(size));
        }
        if (S_ISREG(st.st_mode)) read_content(full, line);
        read_xattrs(full, line);
        lines[below] = text_of(line, options);
        if (S_ISDIR(st.st_mode)) walk(full, below, options, lines);
    }
}

std::string joined(const std::map<std::string, std::string>& lines) {
    std::string text;
    for (const auto& [path, line] : lines) text += path + " " + line + "\n";
    return text;
}

}  // namespace

std::string manifest_of(const View& view, const ManifestOptions& options) {
    std::map<std::string, std::string> lines;
    const auto root = view.attributes(kRootNode);
    const ViewEntry listed{.name = {}, .node = kRootNode, .type = S_IFDIR, .number = root ? root->shown_number() : 0};
    lines["/"] = line_of(view, kRootNode, listed, options);
    walk(view, kRootNode, "", options, lines);
    return joined(lines);
}

std::string manifest_of(const std::string& folder, const ManifestOptions& options) {
    std::map<std::string, std::string> lines;
    struct stat st {};
    if (::lstat(folder.c_str(), &st) == 0) {
        Line line{.attributes = to_attributes(st),
                  .listed_number = st.st_ino,
                  .listed_type = S_IFDIR,
                  .target = {},
                  .content = {},
                  .data_map = {},
                  .xattrs = {}};
        read_xattrs(folder, line);
        lines["/"] = text_of(line, options);
    }
    walk(folder, "", options, lines);
    return joined(lines);
}

std::string first_difference(const std::string& one, const std::string& other) {
    std::istringstream ones(one);
    std::istringstream others(other);
    std::string left;
    std::string right;
    while (true) {
        const bool has_left = static_cast<bool>(std::getline(ones, left));
        const bool has_right = static_cast<bool>(std::getline(others, right));
        if (!has_left && !has_right) return {};
        if (has_left && has_right && left == right) continue;
        return "one:   " + (has_left ? left : "(end)") + "\nother: " + (has_right ? right : "(end)");
    }
}

}  // namespace lamina::test
