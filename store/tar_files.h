#pragma once

#include "store/source_files.h"

#include <cstdint>
#include <map>
#include <string>

namespace lamina::store {

/// The members of a tar that lies in a file, found in one pass over its headers; bodies are read where they lie.
///
/// A tar that is compressed as a whole (gzip, zstd) is unpacked first, into a nameless file in $TMPDIR or /var/tmp.
class TarFiles : public SourceFiles {
public:
    /// `resolve` lets a member that is a link stand for the member it leads to, as docker-save archives have it; never
    /// outside of the archive.
    enum class Links { refuse, resolve };
    TarFiles(const std::string& path, Links links);
    bool has(const std::string& path) const override;
    OpenFile open(const std::string& path) const override;
    std::string describe(std::string_view path) const override;

private:
    struct Member {
        enum class Kind { file, symlink, hardlink, ambiguous, other };
        Kind kind = Kind::other;
        std::uint64_t offset_bytes = 0;
        std::uint64_t size_bytes = 0;
        std::string link;  ///< Of a symlink as it is written; of a hard link a path in the archive.
    };
    void read_members();
    std::string resolved(const std::string& path) const;

    std::string archive_;
    Links links_;
    UniqueFd fd_;
    std::uint64_t size_bytes_ = 0;
    std::map<std::string, Member> members_;
};

}  // namespace lamina::store
