#pragma once

#include <boost/json/object.hpp>
#include <boost/json/value.hpp>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

/// JSON from outside: parsed strictly, then read field by field with errors that name the field.
namespace lamina::store::json {

struct Limits {
    std::uint64_t document_bytes = 4ull << 20;
    std::size_t depth = 64;
};

/// RFC 8259 and nothing beside it. Refuses with Errc::malformed: more than `limits`, invalid UTF-8, a key that occurs
/// twice in an object, anything after the value. Integers that fit 64 bits stay exact.
boost::json::value parse(std::span<const std::byte> document, const Limits& limits);

/// A value and its place in the document ("layers[3].digest"), which errors begin with. Borrows the document.
class Field {
public:
    Field(const boost::json::value& value, std::string where) : value_(&value), where_(std::move(where)) {}

    const std::string& where() const noexcept { return where_; }
    const boost::json::object& object() const;
    std::size_t item_count() const;  ///< Of an array; malformed when it is none.
    Field item(std::size_t index) const;
    std::string text() const;
    std::uint64_t size_bytes() const;  ///< An integer of 0 to 2^63 - 1.

    Field member(std::string_view name) const;                      ///< malformed when it is missing.
    std::optional<Field> find_member(std::string_view name) const;  ///< null counts as missing, as Go writes it.
    std::string text_or_empty(std::string_view name) const;
    [[noreturn]] void fail(std::string_view reason) const;

private:
    const boost::json::value* value_;
    std::string where_;
};

std::string quote(std::string_view text);  ///< As a JSON string.

}  // namespace lamina::store::json
