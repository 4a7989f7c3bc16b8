#include "store/json.h"

#include "store/error.h"
#include "store/printable.h"

#include <boost/json/basic_parser_impl.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_stack.hpp>
#include <boost/system/error_code.hpp>

#include <limits>
#include <set>
#include <string>
#include <vector>

// Boost's own parser lets the last of two equal keys win. Readers that differ in which one they take see different
// documents in the same bytes, so this file drives Boost's tokenizer with a handler of its own: it builds the value as
// Boost's does, and beside it keeps the keys of each open object.
namespace lamina::store::json {

namespace {

namespace bj = boost::json;

// The names of its functions are Boost's.
class StrictHandler {
public:
    static constexpr std::size_t max_object_size = bj::object::max_size();
    static constexpr std::size_t max_array_size = bj::array::max_size();
    static constexpr std::size_t max_key_size = bj::string::max_size();
    static constexpr std::size_t max_string_size = bj::string::max_size();

    bool on_document_begin(boost::system::error_code&) {
        stack_.reset();
        return true;
    }
    bool on_document_end(boost::system::error_code&) { return true; }
    bool on_array_begin(boost::system::error_code&) { return true; }
    bool on_array_end(std::size_t count, boost::system::error_code&) {
        stack_.push_array(count);
        return true;
    }
    bool on_object_begin(boost::system::error_code&) {
        keys_.emplace_back();
        return true;
    }
    bool on_object_end(std::size_t count, boost::system::error_code&) {
        keys_.pop_back();
        stack_.push_object(count);
        return true;
    }
    bool on_string_part(bj::string_view part, std::size_t, boost::system::error_code&) {
        stack_.push_chars(part);
        return true;
    }
    bool on_string(bj::string_view part, std::size_t, boost::system::error_code&) {
        stack_.push_string(part);
        return true;
    }
    bool on_key_part(bj::string_view part, std::size_t, boost::system::error_code&) {
        key_.append(part.data(), part.size());
        stack_.push_chars(part);
        return true;
    }
    bool on_key(bj::string_view part, std::size_t, boost::system::error_code&) {
        key_.append(part.data(), part.size());
        if (!keys_.back().insert(key_).second) {
            throw Error(Errc::malformed, "the key " + store::quote(key_) + " occurs twice in one object");
        }
        key_.clear();
        stack_.push_key(part);
        return true;
    }
    bool on_number_part(bj::string_view, boost::system::error_code&) { return true; }
    bool on_int64(std::int64_t number, bj::string_view, boost::system::error_code&) {
        stack_.push_int64(number);
        return true;
    }
    bool on_uint64(std::uint64_t number, bj::string_view, boost::system::error_code&) {
        stack_.push_uint64(number);
        return true;
    }
    bool on_double(double number, bj::string_view, boost::system::error_code&) {
        stack_.push_double(number);
        return true;
    }
    bool on_bool(bool flag, boost::system::error_code&) {
        stack_.push_bool(flag);
        return true;
    }
    bool on_null(boost::system::error_code&) {
        stack_.push_null();
        return true;
    }
    bool on_comment_part(bj::string_view, boost::system::error_code&) { return true; }
    bool on_comment(bj::string_view, boost::system::error_code&) { return true; }

    bj::value release() { return stack_.release(); }

private:
    bj::value_stack stack_;
    std::vector<std::set<std::string>> keys_;  // One set for each open object.
    std::string key_;
};

std::string member_name(const std::string& where, std::string_view name) {
    return where.empty() ? std::string(name) : where + "." + std::string(name);
}

}  // namespace

bj::value parse(std::span<const std::byte> document, const Limits& limits) {
    if (document.size() > limits.document_bytes) {
        throw Error(Errc::malformed, "JSON of " + std::to_string(document.size()) + " bytes, at most " +
                                         std::to_string(limits.document_bytes) + " are read");
    }
    bj::parse_options options;
    options.max_depth = limits.depth;
    bj::basic_parser<StrictHandler> parser(options);
    boost::system::error_code failure;
    const auto* const text = reinterpret_cast<const char*>(document.data());
    const std::size_t used = parser.write_some(false, text, document.size(), failure);
    if (!failure && used != document.size()) {
        throw Error(Errc::malformed, "JSON: more follows the value at offset " + std::to_string(used));
    }
    if (failure) {
        throw Error(Errc::malformed, "not JSON: " + failure.message() + " at offset " + std::to_string(used));
    }
    return parser.handler().release();
}

void Field::fail(std::string_view reason) const {
    throw Error(Errc::malformed, (where_.empty() ? "" : where_ + ": ") + std::string(reason));
}

const bj::object& Field::object() const {
    const bj::object* const object = value_->if_object();
    if (!object) fail("not a JSON object");
    return *object;
}

std::size_t Field::item_count() const {
    const bj::array* const array = value_->if_array();
    if (!array) fail("not a JSON array");
    return array->size();
}

Field Field::item(std::size_t index) const {
    return Field(value_->as_array().at(index), where_ + "[" + std::to_string(index) + "]");
}

std::string Field::text() const {
    const bj::string* const string = value_->if_string();
    if (!string) fail("not a string");
    return std::string(string->data(), string->size());
}

std::uint64_t Field::size_bytes() const {
    constexpr auto max = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    if (const std::int64_t* const number = value_->if_int64(); number && *number >= 0) {
        return static_cast<std::uint64_t>(*number);
    }
    if (const std::uint64_t* const number = value_->if_uint64(); number && *number <= max) return *number;
    fail("not an integer of 0 to 2^63 - 1");
}

std::optional<Field> Field::find_member(std::string_view name) const {
    const bj::value* const found = object().if_contains(bj::string_view(name.data(), name.size()));
    if (!found || found->is_null()) return std::nullopt;
    return Field(*found, member_name(where_, name));
}

Field Field::member(std::string_view name) const {
    std::optional<Field> found = find_member(name);
    if (!found) throw Error(Errc::malformed, member_name(where_, name) + ": missing");
    return *std::move(found);
}

std::string Field::text_or_empty(std::string_view name) const {
    const std::optional<Field> found = find_member(name);
    return found ? found->text() : std::string();
}

std::string quote(std::string_view text) {
    return bj::serialize(bj::string(text.data(), text.size()));
}

}  // namespace lamina::store::json
