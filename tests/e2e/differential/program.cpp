// The text form: a line `program SEED WATCHED UID`, one line for each lower entry, one for each call. Words are
// separated by spaces; what is no plain character in one stands as %XX, an empty one as %.
#include "e2e/differential/program.h"

#include <array>
#include <charconv>
#include <stdexcept>

namespace lamina::test::differential {
namespace {

bool is_plain(char character) {
    return character > ' ' && character < 0x7f && character != '%';
}

std::string quote(std::string_view word) {
    constexpr std::string_view kHex = "0123456789abcdef";
    if (word.empty()) return "%";
    std::string out;
    for (const char character : word) {
        if (is_plain(character)) {
            out += character;
        } else {
            const auto byte = static_cast<unsigned char>(character);
            out += {'%', kHex[byte >> 4], kHex[byte & 15]};
        }
    }
    return out;
}

template <class Number>
Number number_of(std::string_view text, int base = 10) {
    Number number{};
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number, base);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size())
        throw std::runtime_error("not a number: " + std::string(text));
    return number;
}

std::string unquoted(std::string_view word) {
    if (word == "%") return {};
    std::string out;
    for (std::size_t at = 0; at < word.size(); ++at) {
        if (word[at] != '%') {
            out += word[at];
        } else {
            out += static_cast<char>(number_of<unsigned>(word.substr(at + 1, 2), 16));
            at += 2;
        }
    }
    return out;
}

std::vector<std::string> split(std::string_view text, char separator) {
    std::vector<std::string> parts;
    for (std::size_t begin = 0; begin <= text.size();) {
        const std::size_t end = std::min(text.find(separator, begin), text.size());
        if (end > begin) parts.emplace_back(text.substr(begin, end - begin));
        begin = end + 1;
    }
    return parts;
}

std::string octal_text(std::uint32_t mode) {
    std::array<char, 16> room{};
    const auto end = std::to_chars(room.data(), room.data() + room.size(), mode, 8);
    return {room.data(), end.ptr};
}

std::string lower_line(const LowerEntry& entry) {
    std::string line = std::string("lower ") + entry.type + " " + quote(entry.path) + " " + octal_text(entry.mode) +
                       " " + std::to_string(entry.uid) + " " + std::to_string(entry.gid) + " " +
                       std::to_string(entry.seconds) + " " + std::to_string(entry.nanoseconds) + " " +
                       quote(entry.target) + " " + std::to_string(entry.size_bytes);
    for (const Segment& segment : entry.data)
        line += " data:" + std::to_string(segment.offset_bytes) + ":" + std::to_string(segment.size_bytes) + ":" +
                std::to_string(segment.seed);
    for (const auto& [name, value] : entry.xattrs) line += " xattr " + quote(name) + " " + quote(value);
    return line;
}

LowerEntry parse_lower(const std::vector<std::string>& words) {
    if (words.size() < 10) throw std::runtime_error("a lower line has at least 10 words");
    LowerEntry entry{.type = words[1].at(0),
                     .path = unquoted(words[2]),
                     .mode = number_of<std::uint32_t>(words[3], 8),
                     .uid = number_of<std::uint32_t>(words[4]),
                     .gid = number_of<std::uint32_t>(words[5]),
                     .seconds = number_of<std::int64_t>(words[6]),
                     .nanoseconds = number_of<std::uint32_t>(words[7]),
                     .target = unquoted(words[8]),
                     .size_bytes = number_of<std::uint64_t>(words[9]),
                     .data = {},
                     .xattrs = {}};
    for (std::size_t at = 10; at < words.size(); ++at) {
        if (words[at] == "xattr" && at + 2 < words.size()) {
            entry.xattrs[unquoted(words[at + 1])] = unquoted(words[at + 2]);
            at += 2;
            continue;
        }
        const auto numbers = split(words[at], ':');
        if (numbers.size() != 4) throw std::runtime_error("not understood: " + words[at]);
        entry.data.push_back({number_of<std::uint64_t>(numbers[1]), number_of<std::uint64_t>(numbers[2]),
                              number_of<unsigned>(numbers[3])});
    }
    return entry;
}

}  // namespace

std::string bytes_of(const Segment& segment) {
    std::string bytes(segment.size_bytes, '\0');
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = byte_of(segment.seed, segment.offset_bytes + i);
    return bytes;
}

std::string content_of(const LowerEntry& file) {
    std::string content(file.size_bytes, '\0');
    for (const Segment& segment : file.data)
        content.replace(segment.offset_bytes, segment.size_bytes, bytes_of(segment));
    return content;
}

std::string to_text(const Call& call) {
    std::string line = std::to_string(call.actor);
    for (const auto& word : call.words) line += " " + quote(word);
    return line;
}

std::string to_text(const Program& program) {
    std::string text = "program " + std::to_string(program.seed) + (program.is_watched ? " 1 " : " 0 ") +
                       std::to_string(program.other_uid) + "\n";
    for (const auto& entry : program.lower) text += lower_line(entry) + "\n";
    for (const auto& call : program.calls) text += to_text(call) + "\n";
    return text;
}

Program parse_program(std::string_view text) {
    Program program;
    for (const auto& line : split(text, '\n')) {
        const auto words = split(line, ' ');
        if (words.empty() || words[0].starts_with("#")) continue;
        if (words[0] == "program" && words.size() == 4) {
            program.seed = number_of<unsigned>(words[1]);
            program.is_watched = words[2] == "1";
            program.other_uid = number_of<std::uint32_t>(words[3]);
        } else if (words[0] == "lower") {
            program.lower.push_back(parse_lower(words));
        } else if (words.size() >= 2 && (words[0] == "0" || words[0] == "1")) {
            Call call{.actor = words[0] == "1" ? 1U : 0U, .words = {}};
            for (std::size_t at = 1; at < words.size(); ++at) call.words.push_back(unquoted(words[at]));
            program.calls.push_back(call);
        } else {
            throw std::runtime_error("not understood: " + line);
        }
    }
    if (program.lower.empty()) {
        LowerEntry folder;
        folder.type = 'd';
        folder.path = ".";
        program.lower.push_back(folder);
    }
    return program;
}

}  // namespace lamina::test::differential
