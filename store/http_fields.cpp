#include "store/http_fields.h"

#include <curl/curl.h>

#include <algorithm>

namespace lamina::store {

namespace {

constexpr std::size_t kMaxChallenges = 8;
constexpr std::size_t kMaxParameters = 16;
constexpr std::uint64_t kMaxNumber = (1ull << 63) - 1;
constexpr std::int64_t kMaxRetrySeconds = 86'400;

bool is_token_character(char c) {
    constexpr std::string_view kOthers = "!#$%&'*+-.^_`|~";
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           kOthers.find(c) != std::string_view::npos;
}

/// Reads a field from left to right.
class Scanner {
public:
    explicit Scanner(std::string_view text) : text_(text) {}

    bool is_at_end() const { return at_ == text_.size(); }
    void skip_blanks() {
        while (!is_at_end() && (text_[at_] == ' ' || text_[at_] == '\t')) ++at_;
    }
    void skip_commas() {
        while (!is_at_end() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == ',')) ++at_;
    }
    bool take(char c) {
        if (is_at_end() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    std::string_view token() {
        const std::size_t begin = at_;
        while (!is_at_end() && is_token_character(text_[at_])) ++at_;
        return text_.substr(begin, at_ - begin);
    }
    std::optional<std::string> quoted_string() {
        std::string value;
        while (!is_at_end()) {
            const char c = text_[at_++];
            if (c == '"') return value;
            if (c == '\\' && is_at_end()) return std::nullopt;
            value += c == '\\' ? text_[at_++] : c;
        }
        return std::nullopt;
    }
    std::size_t position() const { return at_; }
    void go_back_to(std::size_t position) { at_ = position; }

private:
    std::string_view text_;
    std::size_t at_ = 0;
};

// NAME = VALUE; nullopt, and nothing read, when what comes is no parameter but the next scheme, or nothing.
std::optional<std::pair<std::string, std::string>> read_parameter(Scanner& scanner) {
    const std::size_t begin = scanner.position();
    scanner.skip_commas();
    const std::string name = lower_case(scanner.token());
    scanner.skip_blanks();
    if (name.empty() || !scanner.take('=')) {
        scanner.go_back_to(begin);
        return std::nullopt;
    }
    scanner.skip_blanks();
    if (!scanner.take('"')) return std::pair(name, std::string(scanner.token()));
    std::optional<std::string> value = scanner.quoted_string();
    if (!value) {
        scanner.go_back_to(begin);
        return std::nullopt;
    }
    return std::pair(name, *std::move(value));
}

}  // namespace

std::string lower_case(std::string_view text) {
    std::string out(text);
    for (char& c : out) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return out;
}

std::vector<Challenge> parse_challenges(std::string_view field) {
    std::vector<Challenge> challenges;
    Scanner scanner(field);
    while (challenges.size() < kMaxChallenges) {
        scanner.skip_commas();
        Challenge challenge{.scheme = lower_case(scanner.token()), .parameters = {}};
        if (challenge.scheme.empty()) break;
        while (auto parameter = read_parameter(scanner)) {
            if (challenge.parameters.size() < kMaxParameters) challenge.parameters.insert(*std::move(parameter));
        }
        challenges.push_back(std::move(challenge));
    }
    return challenges;
}

std::optional<std::uint64_t> parse_decimal(std::string_view text) {
    std::uint64_t value = 0;
    if (text.empty() || text.size() > 19) return std::nullopt;
    for (const char c : text) {
        if (c < '0' || c > '9') return std::nullopt;
        value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    if (value > kMaxNumber) return std::nullopt;
    return value;
}

std::optional<ContentRange> parse_content_range(std::string_view field) {
    constexpr std::string_view kUnit = "bytes ";
    if (lower_case(field.substr(0, kUnit.size())) != kUnit) return std::nullopt;
    field.remove_prefix(kUnit.size());
    const std::size_t dash = field.find('-');
    const std::size_t slash = field.find('/');
    if (dash == std::string_view::npos || slash == std::string_view::npos || slash < dash) return std::nullopt;
    const auto first = parse_decimal(field.substr(0, dash));
    const auto last = parse_decimal(field.substr(dash + 1, slash - dash - 1));
    if (!first || !last || *last < *first) return std::nullopt;
    ContentRange range{.first = *first, .last = *last, .total_bytes = std::nullopt};
    if (const std::string_view total = field.substr(slash + 1); total != "*") {
        range.total_bytes = parse_decimal(total);
        if (!range.total_bytes || *range.total_bytes <= range.last) return std::nullopt;
    }
    return range;
}

std::optional<std::chrono::seconds> parse_retry_after(std::string_view field, std::int64_t now_unix_seconds) {
    if (field.empty() || field.size() > 64) return std::nullopt;
    if (std::all_of(field.begin(), field.end(), [](char c) { return c >= '0' && c <= '9'; })) {
        const std::uint64_t seconds = parse_decimal(field).value_or(kMaxNumber);
        return std::chrono::seconds(std::min<std::uint64_t>(seconds, kMaxRetrySeconds));
    }
    const std::int64_t at = ::curl_getdate(std::string(field).c_str(), nullptr);
    if (at < 0) return std::nullopt;
    return std::chrono::seconds(std::clamp<std::int64_t>(at - now_unix_seconds, 0, kMaxRetrySeconds));
}

}  // namespace lamina::store
