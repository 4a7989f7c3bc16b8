#pragma once

#include <string>
#include <string_view>

namespace lamina::store {

/// "KIND:PATH[:TAG]", as sources and targets are written; PATH and TAG may hold colons.
struct Location {
    enum class Kind { oci, oci_archive, docker_archive, folder };
    Kind kind = Kind::oci;
    std::string path;  ///< Absolute.
    std::string tag;   ///< Empty: none was given.

    /// For what exists: PATH is the longest one that is there, the rest is TAG ("oci:/dir:debian:12"). Throws
    /// malformed, and not_found when nothing is there.
    static Location of_source(std::string_view text);
    /// For what will be made: PATH is the longest existing folder (oci), else it ends at the first colon behind the
    /// deepest folder that exists ("oci-archive:/tmp/x.tar:example.com/redis:7").
    static Location of_target(std::string_view text);
};

}  // namespace lamina::store
