#include "fuse/json_text.h"

#include <fmt/format.h>

namespace lamina::unionfs {
namespace {

// The length of the UTF-8 sequence that begins here, 0 when there is none.
std::size_t utf8_length(std::string_view text) {
    const auto at = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
    const unsigned char first = at(0);
    if (first < 0x80) return 1;
    const std::size_t length = first >= 0xf0 && first <= 0xf4 ? 4 : first >= 0xe0 ? 3 : first >= 0xc2 ? 2 : 0;
    if (length == 0 || first > 0xf4 || text.size() < length) return 0;
    for (std::size_t i = 1; i < length; ++i) {
        if ((at(i) & 0xc0) != 0x80) return 0;
    }
    const bool is_overlong = (first == 0xe0 && at(1) < 0xa0) || (first == 0xf0 && at(1) < 0x90);
    const bool is_surrogate = (first == 0xed && at(1) > 0x9f) || (first == 0xf4 && at(1) > 0x8f);
    return is_overlong || is_surrogate ? 0 : length;
}

std::string quote(std::string_view text) {
    std::string out = "\"";
    while (!text.empty()) {
        const auto byte = static_cast<unsigned char>(text.front());
        const std::size_t length = utf8_length(text);
        if (byte == '"' || byte == '\\') {
            out += '\\';
            out += text.front();
        } else if (byte < 0x20 || byte == 0x7f || length == 0) {
            out += fmt::format("\\u{:04x}", byte);
        } else {
            out += text.substr(0, length);
        }
        text.remove_prefix(length == 0 ? 1 : length);
    }
    return out + "\"";
}

/// Takes a line apart from the left.
class FlatReader {
public:
    explicit FlatReader(std::string_view rest) : rest_(rest) {}
    bool take(char letter) {
        skip_blanks();
        if (rest_.empty() || rest_.front() != letter) return false;
        rest_.remove_prefix(1);
        return true;
    }
    bool take_word(std::string_view word) {
        skip_blanks();
        if (!rest_.starts_with(word)) return false;
        rest_.remove_prefix(word.size());
        return true;
    }
    std::optional<std::string> string() {
        if (!take('"')) return std::nullopt;
        std::string value;
        while (!rest_.empty()) {
            char letter = rest_.front();
            rest_.remove_prefix(1);
            if (letter == '"') return value;
            if (static_cast<unsigned char>(letter) < 0x20) return std::nullopt;
            if (letter == '\\') {
                if (rest_.empty()) return std::nullopt;
                letter = rest_.front();
                rest_.remove_prefix(1);
                if (letter != '"' && letter != '\\' && letter != '/') return std::nullopt;
            }
            value += letter;
        }
        return std::nullopt;
    }
    std::optional<std::string> value() {
        for (const std::string_view word : {"true", "false"}) {
            if (take_word(word)) return std::string(word);
        }
        return string();
    }
    bool is_at_end() {
        skip_blanks();
        return rest_.empty();
    }

private:
    void skip_blanks() {
        while (!rest_.empty() && (rest_.front() == ' ' || rest_.front() == '\t' || rest_.front() == '\r')) {
            rest_.remove_prefix(1);
        }
    }
    std::string_view rest_;
};

}  // namespace

void JsonObject::key(std::string_view name) {
    if (!members_.empty()) members_ += ",";
    members_ += quote(name) + ":";
}

JsonObject& JsonObject::text(std::string_view name, std::string_view value) {
    key(name);
    members_ += quote(value);
    return *this;
}

JsonObject& JsonObject::number(std::string_view name, std::uint64_t value) {
    key(name);
    members_ += fmt::format("{}", value);
    return *this;
}

JsonObject& JsonObject::flag(std::string_view name, bool value) {
    key(name);
    members_ += value ? "true" : "false";
    return *this;
}

JsonObject& JsonObject::object(std::string_view name, const JsonObject& value) {
    key(name);
    members_ += value.str();
    return *this;
}

std::optional<std::map<std::string, std::string>> parse_flat_json(std::string_view line) {
    constexpr std::size_t kMemberLimit = 16;
    FlatReader reader(line);
    std::map<std::string, std::string> members;
    if (!reader.take('{')) return std::nullopt;
    if (!reader.take('}')) {
        do {
            auto name = reader.string();
            if (!name || !reader.take(':')) return std::nullopt;
            auto value = reader.value();
            if (!value || members.size() == kMemberLimit) return std::nullopt;
            if (!members.emplace(std::move(*name), std::move(*value)).second) return std::nullopt;
        } while (reader.take(','));
        if (!reader.take('}')) return std::nullopt;
    }
    if (!reader.is_at_end()) return std::nullopt;
    return members;
}

}  // namespace lamina::unionfs
