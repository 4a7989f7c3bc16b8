#include "store/reference.h"

#include "store/error.h"
#include "store/printable.h"

#include <algorithm>

// The grammar is the distribution specification's ("Pulling manifests": <name> and <reference>) with the optional host
// and port before it that every client understands.
namespace lamina::store {

namespace {

constexpr std::size_t kMaxNameBytes = 255;
constexpr std::size_t kMaxTagBytes = 128;
constexpr std::size_t kMinDigestDigits = 6;

bool is_lower(char c) {
    return c >= 'a' && c <= 'z';
}
bool is_upper(char c) {
    return c >= 'A' && c <= 'Z';
}
bool is_digit(char c) {
    return c >= '0' && c <= '9';
}

[[noreturn]] void refuse(std::string_view text, std::string_view rule) {
    throw Error(Errc::malformed, "image name " + quote(text) + ": " + std::string(rule));
}

// [a-z0-9]+ parts, joined by one ".", one or two "_", or any number of "-".
bool is_path_component(std::string_view text) {
    const auto is_alphanumeric = [](char c) { return is_lower(c) || is_digit(c); };
    std::size_t at = 0;
    while (true) {
        const std::size_t begin = at;
        while (at < text.size() && is_alphanumeric(text[at])) ++at;
        if (at == begin) return false;
        if (at == text.size()) return true;
        const std::size_t separator = at;
        while (at < text.size() && text[at] == text[separator] && !is_alphanumeric(text[at])) ++at;
        const std::size_t count = at - separator;
        const bool is_good =
            (text[separator] == '.' && count == 1) || (text[separator] == '_' && count <= 2) || text[separator] == '-';
        if (!is_good) return false;
    }
}

bool is_host(std::string_view text) {
    const std::size_t colon = text.starts_with('[') ? text.find(':', text.find(']')) : text.rfind(':');
    if (colon != std::string_view::npos) {
        const std::string_view port = text.substr(colon + 1);
        if (port.empty() || port.size() > 5 || !std::all_of(port.begin(), port.end(), is_digit)) return false;
        text = text.substr(0, colon);
    }
    if (text.starts_with('[')) {
        return text.size() > 3 && text.ends_with(']') &&
               text.substr(1, text.size() - 2).find_first_not_of("0123456789abcdefABCDEF:") == std::string_view::npos;
    }
    std::size_t begin = 0;
    while (begin <= text.size()) {
        const std::string_view label = text.substr(begin, text.find('.', begin) - begin);
        const bool is_good = !label.empty() && label.front() != '-' && label.back() != '-' &&
                             std::all_of(label.begin(), label.end(),
                                         [](char c) { return is_lower(c) || is_upper(c) || is_digit(c) || c == '-'; });
        if (!is_good) return false;
        begin += label.size() + 1;
    }
    return true;
}

bool is_tag(std::string_view text) {
    const auto is_word = [](char c) { return is_lower(c) || is_upper(c) || is_digit(c) || c == '_'; };
    return !text.empty() && text.size() <= kMaxTagBytes && is_word(text.front()) &&
           std::all_of(text.begin(), text.end(), [&](char c) { return is_word(c) || c == '.' || c == '-'; });
}

// The first component is a host when it could be no other: with a dot or a colon, or "localhost".
bool begins_with_host(std::string_view name) {
    const std::size_t slash = name.find('/');
    if (slash == std::string_view::npos) return false;
    const std::string_view first = name.substr(0, slash);
    return first == "localhost" || first.find_first_of(".:[") != std::string_view::npos ||
           std::any_of(first.begin(), first.end(), is_upper);
}

void check_repository(std::string_view text, std::string_view name) {
    if (name.empty()) refuse(text, "it has no repository");
    if (name.size() > kMaxNameBytes) refuse(text, "longer than 255 characters before the tag");
    if (begins_with_host(name)) {
        const std::string_view host = name.substr(0, name.find('/'));
        if (!is_host(host)) refuse(text, quote(host) + " is not HOST or HOST:PORT");
        name.remove_prefix(host.size() + 1);
    }
    std::size_t begin = 0;
    while (begin <= name.size()) {
        const std::string_view component = name.substr(begin, name.find('/', begin) - begin);
        if (!is_path_component(component)) {
            refuse(text, quote(component) + " is not lower-case letters and digits, joined by \".\", \"_\" or \"-\"");
        }
        begin += component.size() + 1;
    }
}

}  // namespace

ImageName ImageName::parse(std::string_view text) {
    if (text.empty()) refuse(text, "it is empty");
    if (text.find('@') != std::string_view::npos) refuse(text, "a name has no digest (\"@\")");
    const std::size_t slash = text.rfind('/');
    const std::size_t colon = text.find(':', slash == std::string_view::npos ? 0 : slash);
    const std::string_view repository = text.substr(0, colon);
    const std::string_view tag = colon == std::string_view::npos ? "latest" : text.substr(colon + 1);
    check_repository(text, repository);
    if (!is_tag(tag)) {
        refuse(text, "the tag " + quote(tag) + " is not 1 to 128 letters, digits, \"_\", \".\" or \"-\"");
    }
    return ImageName(std::string(repository) + ":" + std::string(tag));
}

ImageReference ImageReference::parse(std::string_view text) {
    ImageReference reference;
    std::string_view hex = text;
    if (hex.starts_with("sha256:")) hex.remove_prefix(7);
    const bool is_hex = hex.size() >= kMinDigestDigits && hex.size() <= 2 * Digest::kSizeBytes &&
                        hex.find_first_not_of("0123456789abcdef") == std::string_view::npos;
    if (is_hex) reference.digest_prefix_hex = hex;
    try {
        reference.name = ImageName::parse(text);
    } catch (const Error&) {  // A digest need not be a name as well.
        if (!is_hex) throw;
    }
    return reference;
}

std::string repository_of(std::string_view name) {
    const auto colon = name.rfind(':');
    return colon == name.npos || name.starts_with("sha256:") ? std::string() : std::string(name.substr(0, colon));
}

}  // namespace lamina::store
