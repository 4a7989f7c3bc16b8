#include "e2e/differential/lower.h"

#include "store/file.h"
#include "support/tar_builder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <system_error>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <random>
#include <ranges>
#include <set>

namespace lamina::test::differential {
namespace {

void check(long result, const std::string& what) {
    if (result < 0) throw std::system_error(errno, std::generic_category(), what);
}

void make_file(const LowerEntry& entry, const std::string& path) {
    const store::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    check(file.get(), path);
    for (const Segment& segment : entry.data) {
        const std::string bytes = bytes_of(segment);
        check(::pwrite(file.get(), bytes.data(), bytes.size(), static_cast<off_t>(segment.offset_bytes)), path);
    }
    check(::ftruncate(file.get(), static_cast<off_t>(entry.size_bytes)), path);
}

void make(const LowerEntry& entry, const std::string& folder, const std::string& path) {
    constexpr std::uint32_t kFirst = 0700;
    switch (entry.type) {
        case 'd':
            return check(::mkdir(path.c_str(), kFirst), path);
        case 'l':
            return check(::symlink(entry.target.c_str(), path.c_str()), path);
        case 'h':
            return check(::link((folder + "/" + entry.target).c_str(), path.c_str()), path);
        case 'w':
            return check(::mknod(path.c_str(), S_IFCHR, makedev(0, 0)), path);
        case 'p':
            return check(::mkfifo(path.c_str(), kFirst), path);
        case 'c':
            return check(::mknod(path.c_str(), S_IFCHR | kFirst, makedev(1, 3)), path);
        default:
            make_file(entry, path);
    }
}

void describe(const LowerEntry& entry, const std::string& path) {
    if (entry.type == 'h' || entry.type == 'w') return;
    check(::lchown(path.c_str(), entry.uid, entry.gid), path);
    if (entry.type != 'l') check(::chmod(path.c_str(), entry.mode), path);
    for (const auto& [name, value] : entry.xattrs)
        check(::lsetxattr(path.c_str(), name.c_str(), value.data(), value.size(), 0), path + " " + name);
}

void set_times(const LowerEntry& entry, const std::string& path) {
    if (entry.type == 'h') return;
    const timespec time{.tv_sec = entry.seconds, .tv_nsec = entry.nanoseconds};
    const std::array<timespec, 2> times = {time, time};
    check(::utimensat(AT_FDCWD, path.c_str(), times.data(), AT_SYMLINK_NOFOLLOW), path);
}

std::string time_text(const LowerEntry& entry) {
    std::int64_t seconds = entry.seconds;
    std::uint32_t nanoseconds = entry.nanoseconds;
    const bool is_negative = seconds < 0;
    if (is_negative && nanoseconds > 0) {
        ++seconds;
        nanoseconds = 1'000'000'000 - nanoseconds;
    }
    std::string fraction = std::to_string(nanoseconds);
    fraction.insert(0, 9 - fraction.size(), '0');
    return (is_negative ? "-" : "") + std::to_string(is_negative ? -seconds : seconds) + "." + fraction;
}

struct Body {
    std::string bytes;
    TarBuilder::Pax records;
};

/// A file's body: whole, or in GNU's form for files with holes.
Body body_of(const LowerEntry& entry) {
    const bool is_whole =
        entry.data.size() == 1 && entry.data[0].offset_bytes == 0 && entry.data[0].size_bytes == entry.size_bytes;
    if (is_whole || entry.size_bytes == 0) return {.bytes = content_of(entry), .records = {}};
    Body body;
    std::string map = std::to_string(entry.data.size()) + "\n";
    for (const Segment& segment : entry.data)
        map += std::to_string(segment.offset_bytes) + "\n" + std::to_string(segment.size_bytes) + "\n";
    map.resize((map.size() + 511) / 512 * 512, '\0');
    body.bytes = map;
    for (const Segment& segment : entry.data) body.bytes += bytes_of(segment);
    body.records = {{"GNU.sparse.major", "1"},
                    {"GNU.sparse.minor", "0"},
                    {"GNU.sparse.realsize", std::to_string(entry.size_bytes)}};
    return body;
}

void add(TarBuilder& tar, const LowerEntry& entry, const std::string& folder) {
    const std::string path = entry.path == "." ? folder : folder + "/" + entry.path;
    Body body;
    if (entry.type == 'f') body = body_of(entry);
    TarBuilder::Pax records = body.records;
    records.emplace_back(records.empty() ? "path" : "GNU.sparse.name", entry.type == 'd' ? path + "/" : path);
    records.emplace_back("mtime", time_text(entry));
    if (entry.type == 'l') records.emplace_back("linkpath", entry.target);
    if (entry.type == 'h') records.emplace_back("linkpath", folder + "/" + entry.target);
    for (const auto& [name, value] : entry.xattrs) records.emplace_back("SCHILY.xattr." + name, value);
    tar.pax(records);
    static const std::map<char, char> kFlags = {{'d', '5'}, {'f', '0'}, {'l', '2'}, {'h', '1'}, {'p', '6'}, {'c', '3'}};
    RawHeader header;
    header.name = "x";
    header.type_flag = kFlags.at(entry.type);
    header.size = octal(body.bytes.size());
    header.mode = octal(entry.type == 'l' ? 0777 : entry.mode, 7);
    header.uid = octal(entry.uid, 7);
    header.gid = octal(entry.gid, 7);
    if (entry.type == 'c') {
        header.device_major = octal(1, 7);
        header.device_minor = octal(3, 7);
    }
    tar.raw(header, body.bytes);
}

std::string parent_of(const std::string& path) {
    const std::size_t slash = path.rfind('/');
    return path == "." ? "" : slash == std::string::npos ? "." : path.substr(0, slash);
}

/// Puts entries into layers.
class Splitter {
public:
    Splitter(const std::vector<LowerEntry>& lower, unsigned count, unsigned seed)
        : lower_(lower), random_(seed), layers_(count) {}
    std::vector<std::vector<LowerEntry>> split() {
        for (const auto& entry : lower_) {
            const unsigned own = static_cast<unsigned>(random_() % layers_.size());
            home_[entry.path] = entry.type == 'h' ? home_[entry.target] : own;
            for (std::string path = entry.type == 'd' ? entry.path : parent_of(entry.path); !path.empty();
                 path = parent_of(path))
                folders_[path].insert(home_[entry.path]);
        }
        for (const auto& entry : lower_) {
            if (entry.type != 'd') {
                layers_[home_[entry.path]].push_back(entry);
                continue;
            }
            add_folder(entry);
        }
        for (const auto& entry : lower_)
            if (entry.type == 'd') hide_something(entry);
        return std::move(layers_);
    }

private:
    /// As it is in the topmost layer that has it; otherwise below.
    void add_folder(const LowerEntry& entry) {
        const auto& places = folders_[entry.path];
        for (const unsigned place : places) {
            LowerEntry copy = entry;
            if (place != *places.begin()) {
                copy.mode = 0711;
                copy.uid = copy.gid = 77;
                copy.seconds = 77;
                copy.xattrs = {{"user.a", "hidden"}};
            }
            layers_[place].push_back(std::move(copy));
        }
    }
    void hide_something(const LowerEntry& folder) {
        const auto& places = folders_[folder.path];
        const unsigned top = *places.begin();
        const unsigned bottom = *places.rbegin();
        if (top == bottom) return;
        const std::string name(1, static_cast<char>('a' + random_() % 8));
        const std::string path = folder.path == "." ? name : folder.path + "/" + name;
        if (home_.contains(path)) return;
        LowerEntry hidden;
        hidden.path = path;
        hidden.type = random_() % 3 == 0 ? 'd' : 'f';
        hidden.seconds = 99;
        layers_[bottom].push_back(hidden);
        if (hidden.type == 'd') {
            hidden.path += "/below";
            hidden.type = 'f';
            layers_[bottom].push_back(hidden);
        }
        LowerEntry whiteout;
        whiteout.type = 'w';
        whiteout.path = path;
        layers_[top].push_back(whiteout);
    }

    const std::vector<LowerEntry>& lower_;
    std::mt19937 random_;
    std::vector<std::vector<LowerEntry>> layers_;
    std::map<std::string, unsigned> home_;
    std::map<std::string, std::set<unsigned>> folders_;
};

}  // namespace

std::vector<std::vector<LowerEntry>> split_lower(const std::vector<LowerEntry>& lower, unsigned count, unsigned seed) {
    return Splitter(lower, count, seed).split();
}

void write_folder(const std::vector<LowerEntry>& lower, const std::string& folder) {
    const auto path_of = [&](const LowerEntry& entry) {
        return entry.path == "." ? folder : folder + "/" + entry.path;
    };
    for (const auto& entry : lower) make(entry, folder, path_of(entry));
    for (const auto& entry : lower) describe(entry, path_of(entry));
    for (const auto& entry : std::views::reverse(lower)) set_times(entry, path_of(entry));
}

std::string layer_of(const std::vector<NamedLower>& programs) {
    TarBuilder tar;
    for (const auto& [folder, lower] : programs)
        for (const auto& entry : *lower) add(tar, entry, folder);
    return tar.tar();
}

}  // namespace lamina::test::differential
