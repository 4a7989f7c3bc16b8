#include "store/archive_source.h"

#include "store/blob_source.h"
#include "store/directory_source.h"
#include "store/docker_archive_source.h"
#include "store/error.h"
#include "store/oci_layout_source.h"
#include "store/printable.h"
#include "store/tar_files.h"

#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <optional>
#include <utility>

namespace lamina::store {

namespace {

constexpr std::array kKinds = {
    std::pair{std::string_view("oci:"), Location::Kind::oci},
    std::pair{std::string_view("oci-archive:"), Location::Kind::oci_archive},
    std::pair{std::string_view("docker-archive:"), Location::Kind::docker_archive},
    std::pair{std::string_view("dir:"), Location::Kind::folder},
};

constexpr std::size_t kMaxLocationBytes = 5000;  // A path and the longest name.

// Cuts the kind off and checks the rest; `path` still holds the tag.
Location parse_kind(std::string_view text) {
    for (const auto& [prefix, kind] : kKinds) {
        if (!text.starts_with(prefix)) continue;
        const std::string_view rest = text.substr(prefix.size());
        if (rest.empty())
            throw Error(Errc::malformed, quote(text) + ": a path is missing after \"" + std::string(prefix) + "\"");
        if (rest.front() != '/') throw Error(Errc::malformed, quote(text) + ": the path is not absolute");
        if (rest.find('\0') != std::string_view::npos) throw Error(Errc::malformed, quote(text) + ": not a path");
        if (rest.size() > kMaxLocationBytes) throw Error(Errc::malformed, quote(text) + ": too long for a path");
        return Location{.kind = kind, .path = std::string(rest)};
    }
    throw Error(Errc::malformed, quote(text) + ": begins with none of oci:, oci-archive:, docker-archive:, dir:");
}

bool wants_folder(Location::Kind kind) {
    return kind == Location::Kind::oci || kind == Location::Kind::folder;
}

// The longest prefix of `location.path`, cut at a colon, that exists and is what the kind needs.
std::optional<Location> find_existing(const Location& location) {
    std::size_t end = location.path.size();
    while (true) {
        struct stat st {};
        const std::string path = location.path.substr(0, end);
        const bool is_there = ::stat(path.c_str(), &st) == 0;
        if (!is_there && errno != ENOENT && errno != ENOTDIR && errno != ENAMETOOLONG) throw_errno(errno, path);
        if (is_there && (wants_folder(location.kind) ? S_ISDIR(st.st_mode) : S_ISREG(st.st_mode))) {
            return Location{location.kind, path, end == location.path.size() ? "" : location.path.substr(end + 1)};
        }
        const std::size_t colon = location.path.rfind(':', end - 1);
        if (colon == std::string::npos || colon == 0 || location.kind == Location::Kind::folder) return std::nullopt;
        end = colon;
    }
}

// Where the name of what will be made begins: behind the slash of the deepest folder that exists.
std::size_t end_of_existing_folder(const std::string& path) {
    for (std::size_t slash = path.rfind('/'); slash != 0; slash = path.rfind('/', slash - 1)) {
        struct stat st {};
        if (::stat(path.substr(0, slash).c_str(), &st) == 0 && S_ISDIR(st.st_mode)) return slash + 1;
    }
    return 1;
}

// Docker's newer archives are OCI layouts as well; some tools write no more than that.
std::unique_ptr<ImageSource> open_docker_archive(const Location& location, const oci::Platform& platform) {
    auto files = std::make_unique<TarFiles>(location.path, TarFiles::Links::resolve);
    if (files->has("manifest.json")) return std::make_unique<DockerArchiveSource>(std::move(files), location.tag);
    if (files->has("index.json")) return std::make_unique<OciLayoutSource>(std::move(files), location.tag, platform);
    throw Error(Errc::malformed, location.path + ": no manifest.json in it, so this is no docker archive");
}

}  // namespace

Location Location::of_source(std::string_view text) {
    const Location location = parse_kind(text);
    if (std::optional<Location> found = find_existing(location)) return *std::move(found);
    struct stat st {};
    if (::stat(location.path.c_str(), &st) == 0) {
        throw Error(Errc::malformed,
                    location.path + (wants_folder(location.kind) ? ": not a folder" : ": not a regular file"));
    }
    throw Error(Errc::not_found, location.path + (wants_folder(location.kind) ? ": no such folder" : ": no such file"));
}

Location Location::of_target(std::string_view text) {
    Location location = parse_kind(text);
    if (location.kind == Kind::folder) throw Error(Errc::malformed, quote(text) + ": images are not saved to dir:");
    if (location.kind == Kind::oci) {
        if (std::optional<Location> found = find_existing(location)) return *std::move(found);
    }
    const std::size_t colon = location.path.find(':', end_of_existing_folder(location.path));
    if (colon == std::string::npos) return location;
    location.tag = location.path.substr(colon + 1);
    location.path.resize(colon);
    if (location.path.ends_with('/')) throw Error(Errc::malformed, quote(text) + ": a file name is missing");
    return location;
}

std::unique_ptr<ImageSource> open_source(const std::string& source, const oci::Platform& platform) {
    Location location = Location::of_source(source);
    switch (location.kind) {
        case Location::Kind::oci:
            return std::make_unique<OciLayoutSource>(std::make_unique<FolderFiles>(location.path),
                                                     std::move(location.tag), platform);
        case Location::Kind::oci_archive:
            return std::make_unique<OciLayoutSource>(std::make_unique<TarFiles>(location.path, TarFiles::Links::refuse),
                                                     std::move(location.tag), platform);
        case Location::Kind::docker_archive:
            return open_docker_archive(location, platform);
        case Location::Kind::folder:
            return std::make_unique<DirectorySource>(location.path);
    }
    throw Error(Errc::internal, "no source for " + source);
}

}  // namespace lamina::store
