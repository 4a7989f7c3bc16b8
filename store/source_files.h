#pragma once

#include "store/byte_stream.h"
#include "store/file.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// The files that a source is made of, by relative path ("blobs/sha256/..."): a folder, or the members of a tar.
///
/// Hostile: a name never leads outside, links to outside are refused, and only regular files are opened. Throws
/// not_found, malformed, and what reading throws; the text begins with describe(path). One thread at a time; a
/// ByteSource that it opened may outlive it and be read from another thread.
class SourceFiles {
public:
    struct OpenFile {
        std::uint64_t size_bytes = 0;
        std::vector<std::byte> first_bytes;  ///< At most 4, for compression_of().
        std::unique_ptr<ByteSource> bytes;   ///< From the first byte on.
    };
    virtual ~SourceFiles() = default;
    virtual bool has(const std::string& path) const = 0;  ///< A link or a device counts: open() will say what is wrong.
    virtual OpenFile open(const std::string& path) const = 0;
    virtual std::string describe(std::string_view path) const = 0;  ///< For errors: "/x/layout/index.json".

    /// All of a small file; malformed when it is larger than `limit_bytes`.
    std::vector<std::byte> read(const std::string& path, std::uint64_t limit_bytes) const;
};

/// A folder. Opened once; each file is then found beneath it without following any link (openat2).
class FolderFiles : public SourceFiles {
public:
    explicit FolderFiles(std::string folder);
    bool has(const std::string& path) const override;
    OpenFile open(const std::string& path) const override;
    std::string describe(std::string_view path) const override;

private:
    std::string folder_;
    UniqueFd fd_;
};

/// Reads a range of an open file with pread. Owns a descriptor of its own.
class FileRangeSource : public ByteSource {
public:
    FileRangeSource(UniqueFd fd, std::uint64_t offset_bytes, std::uint64_t size_bytes, std::string path_for_errors);
    /// Throws corrupt when the file ends within the range.
    std::size_t read(std::span<std::byte> out) override;

private:
    UniqueFd fd_;
    std::uint64_t offset_bytes_;
    std::uint64_t left_bytes_;
    std::string path_;
};

}  // namespace lamina::store
