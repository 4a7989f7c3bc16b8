#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

/// Random programs of system calls, which a local file system and a mount of ours must answer alike.
namespace lamina::test::differential {

/// One system call (or a few that belong together): which of the two processes makes it, and its words (calls.h).
struct Call {
    unsigned actor = 0;
    std::vector<std::string> words;
};

/// Bytes that are not holes: byte i of a file is byte_of(seed, i).
struct Segment {
    std::uint64_t offset_bytes = 0;
    std::uint64_t size_bytes = 0;
    unsigned seed = 0;
};

/// What lies below when a program begins.
struct LowerEntry {
    char type = 'f';   ///< d, f, l (symbolic link), h (hard link), p (fifo), c (character device 1:3).
    std::string path;  ///< Relative, behind its parent's entry. "." is the program's own folder, the first of all.
    std::uint32_t mode = 0755;
    std::uint32_t uid = 0;
    std::uint32_t gid = 0;
    std::int64_t seconds = 0;  ///< Of the last modification.
    std::uint32_t nanoseconds = 0;
    std::string target;
    std::uint64_t size_bytes = 0;
    std::vector<Segment> data;
    std::map<std::string, std::string> xattrs;
};

struct Program {
    unsigned seed = 0;
    bool is_watched = false;      ///< All attributes are compared after each call, not only at the end.
    std::uint32_t other_uid = 0;  ///< Whom the second process runs as; 0: as root, like the first.
    std::vector<LowerEntry> lower;
    std::vector<Call> calls;
};

/// Never NUL, so that a lost byte shows.
inline char byte_of(unsigned seed, std::uint64_t offset_bytes) {
    const std::uint64_t mixed = (offset_bytes + 1) * 0x9E3779B97F4A7C15 + seed * std::uint64_t{0xBF58476D1CE4E5B9};
    return static_cast<char>('!' + (mixed >> 40) % 90);
}
std::string bytes_of(const Segment& segment);
std::string content_of(const LowerEntry& file);  ///< Whole, holes as zeros.

/// A program as lines of words: to be kept, read, cut and run again. parse() throws std::runtime_error.
std::string to_text(const Program& program);
std::string to_text(const Call& call);
Program parse_program(std::string_view text);

/// The same seed gives the same program.
Program random_program(unsigned seed);

}  // namespace lamina::test::differential
