#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Values of HTTP header fields, from servers that may be hostile. None throws: what is malformed is not there.
namespace lamina::store {

/// One challenge of a WWW-Authenticate field (RFC 9110, section 11.6.1).
struct Challenge {
    std::string scheme;                             ///< Lower case: "bearer", "basic".
    std::map<std::string, std::string> parameters;  ///< Names in lower case; of a name that comes twice, the first.
};
/// At most 8 challenges of 16 parameters; what follows the first thing that cannot be read is left out.
std::vector<Challenge> parse_challenges(std::string_view field);

/// Content-Range of a 206 reply (RFC 9110, section 14.4): bytes first to last, both within.
struct ContentRange {
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    std::optional<std::uint64_t> total_bytes;  ///< nullopt: "*"
};
std::optional<ContentRange> parse_content_range(std::string_view field);

/// Retry-After: seconds, or a date (of which the time from `now` is taken; 0 when it has passed). At most a day.
std::optional<std::chrono::seconds> parse_retry_after(std::string_view field, std::int64_t now_unix_seconds);

/// Decimal digits and nothing else, below 2^63.
std::optional<std::uint64_t> parse_decimal(std::string_view text);

std::string lower_case(std::string_view text);  ///< ASCII only.

}  // namespace lamina::store
