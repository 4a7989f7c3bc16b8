#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace lamina::unionfs {

/// Writes one JSON object, member by member, as text. Bytes that are not UTF-8 text become "\u00XX" of each byte.
class JsonObject {
public:
    JsonObject& text(std::string_view key, std::string_view value);
    JsonObject& number(std::string_view key, std::uint64_t value);
    JsonObject& flag(std::string_view key, bool value);
    JsonObject& object(std::string_view key, const JsonObject& value);
    std::string str() const { return "{" + members_ + "}"; }

private:
    void key(std::string_view name);
    std::string members_;
};

/// A flat JSON object of strings and booleans ("true", "false"), as the control socket takes it: at most 16 members,
/// no escapes in strings but \" \\ \/. nullopt when it is anything else.
std::optional<std::map<std::string, std::string>> parse_flat_json(std::string_view line);

}  // namespace lamina::unionfs
