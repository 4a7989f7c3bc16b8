#pragma once

#include "store/byte_stream.h"
#include "store/file.h"

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// A file outside of the store that appears whole or not at all: written under a name of its own in the target's folder
/// (kOutputPrefix, process, number, ".tmp"), buffered, and removed again unless publish() was reached. One thread.
class OutputFile : public ByteSink {
public:
    explicit OutputFile(const std::string& folder);
    ~OutputFile() override;
    OutputFile(OutputFile&& other) noexcept;
    OutputFile& operator=(OutputFile&&) = delete;

    void write(std::span<const std::byte> data) override;
    /// Writes over earlier bytes.
    void write_at(std::uint64_t offset_bytes, std::span<const std::byte> data);
    std::uint64_t size_bytes() const noexcept { return file_.size_bytes() + buffer_.size(); }
    /// Syncs and renames to `target`, in the same folder or file system; replaces what is there. The mode is the
    /// umask's.
    void publish(const std::string& target);
    bool is_renamed() const;  ///< After publish() failed: whether `target` is the new file nevertheless.

private:
    void flush();
    File file_;
    std::vector<std::byte> buffer_;
    bool is_temporary_ = false;
};

inline constexpr std::string_view kOutputPrefix = ".lamina-";

/// As make_folders(), with the mode that the umask gives. Appends those that were not there before to `made`, outermost
/// first, and does so before it makes any: what it could not finish is among them.
void make_output_folders(const std::string& path, std::vector<std::string>& made);

/// A tar (ustar) outside of the store, whose members' names and sizes need not be known before their bytes. Owner and
/// times are zero: the same members give the same bytes. One thread.
class OutputArchive : public ByteSink {
public:
    explicit OutputArchive(const std::string& folder) : file_(folder) {}
    void add_folder(std::string_view name);  ///< Without trailing slash.
    void add(std::string_view name, std::span<const std::byte> body);
    void begin_member();
    void write(std::span<const std::byte> data) override;  ///< Of the member that was begun.
    void end_member(std::string_view name);                ///< At most 99 bytes.
    void publish(const std::string& target);  ///< As OutputFile's, but `target` is gone again when it fails.

private:
    OutputFile file_;
    std::uint64_t header_offset_ = 0;
};

}  // namespace lamina::store
