#include "store/http_url.h"

#include "store/error.h"
#include "store/http_fields.h"
#include "store/printable.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <netinet/in.h>

#include <array>
#include <cstring>
#include <memory>
#include <optional>
#include <span>

namespace lamina::store {

namespace {

constexpr std::size_t kMaxUrlBytes = 8 << 10;
constexpr std::uint16_t kHttpPort = 80;
constexpr std::uint16_t kHttpsPort = 443;

struct FreeUrl {
    void operator()(CURLU* url) const noexcept { ::curl_url_cleanup(url); }
};
using UrlHandle = std::unique_ptr<CURLU, FreeUrl>;

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
    throw Error(Errc::malformed, "URL " + quote(text.substr(0, text.find('?'))) + ": " + std::string(why));
}

void set_part(CURLU* url, CURLUPart part, std::string_view text, unsigned flags = 0) {
    const std::string terminated(text);
    const CURLUcode status = ::curl_url_set(url, part, terminated.c_str(), flags);
    if (status != CURLUE_OK) refuse(text, ::curl_url_strerror(status));
}

std::optional<std::string> part_of(CURLU* url, CURLUPart part, unsigned flags = 0) {
    char* text = nullptr;
    if (::curl_url_get(url, part, &text, flags) != CURLUE_OK) return std::nullopt;
    const std::unique_ptr<char, decltype(&::curl_free)> owned(text, ::curl_free);
    return std::string(text);
}

void check_text(std::string_view text) {
    if (text.size() > kMaxUrlBytes) refuse(text.substr(0, 100), "longer than 8 KiB");
    for (const char c : text) {
        if (static_cast<unsigned char>(c) <= 0x20 || c == 0x7f) refuse(text, "has a blank or a control character");
    }
}

UrlHandle parsed(std::string_view text) {
    check_text(text);
    UrlHandle url(::curl_url());
    if (!url) throw Error(Errc::internal, "no memory for a URL");
    set_part(url.get(), CURLUPART_URL, text);
    return url;
}

bool is_private_ipv4(std::span<const std::uint8_t, 4> a) {
    return a[0] == 0 || a[0] == 10 || a[0] == 127 || a[0] >= 224 || (a[0] == 169 && a[1] == 254) ||
           (a[0] == 172 && (a[1] & 0xf0) == 16) || (a[0] == 192 && a[1] == 168) ||
           (a[0] == 100 && (a[1] & 0xc0) == 64) || (a[0] == 192 && a[1] == 0 && a[2] == 0) ||
           (a[0] == 198 && (a[1] & 0xfe) == 18);
}

bool is_private_ipv6(const std::array<std::uint8_t, 16>& a) {
    const auto begins_with = [&](std::initializer_list<std::uint8_t> prefix) {
        return std::equal(prefix.begin(), prefix.end(), a.begin());
    };
    const auto ipv4_at = [&](std::size_t offset) { return std::span<const std::uint8_t, 4>(a.data() + offset, 4); };
    if (begins_with({0, 0, 0, 0, 0, 0, 0, 0, 0, 0}))
        return a[10] != 0xff || a[11] != 0xff || is_private_ipv4(ipv4_at(12));
    if (begins_with({0, 0x64, 0xff, 0x9b})) return is_private_ipv4(ipv4_at(12));  // NAT64
    if (begins_with({0x20, 0x02})) return is_private_ipv4(ipv4_at(2));            // 6to4
    return (a[0] & 0xfe) == 0xfc || (a[0] == 0xfe && a[1] >= 0x80) || a[0] == 0xff;
}

}  // namespace

Url Url::parse(std::string_view text) {
    const UrlHandle handle = parsed(text);
    Url url;
    const std::string scheme = part_of(handle.get(), CURLUPART_SCHEME).value_or("");
    if (scheme != "http" && scheme != "https") refuse(text, "neither http nor https");
    if (part_of(handle.get(), CURLUPART_USER) || part_of(handle.get(), CURLUPART_PASSWORD)) {
        throw Error(Errc::malformed, "a URL holds a user or a password, which is refused");
    }
    url.is_https_ = scheme == "https";
    url.host_ = lower_case(part_of(handle.get(), CURLUPART_HOST).value_or(""));
    if (url.host_.size() > 2 && url.host_.front() == '[') url.host_ = url.host_.substr(1, url.host_.size() - 2);
    if (url.host_.empty()) refuse(text, "without a host");
    const std::string port = part_of(handle.get(), CURLUPART_PORT).value_or("");
    url.port_ = port.empty() ? (url.is_https_ ? kHttpsPort : kHttpPort) : static_cast<std::uint16_t>(std::stoul(port));
    url.path_ = part_of(handle.get(), CURLUPART_PATH).value_or("/");
    set_part(handle.get(), CURLUPART_HOST, lower_case(part_of(handle.get(), CURLUPART_HOST).value_or("")));
    ::curl_url_set(handle.get(), CURLUPART_FRAGMENT, nullptr, 0);
    url.text_ = part_of(handle.get(), CURLUPART_URL).value_or("");
    check_text(url.text_);
    return url;
}

Url Url::resolve(std::string_view reference) const {
    const UrlHandle handle = parsed(text_);
    check_text(reference);
    set_part(handle.get(), CURLUPART_URL, reference);
    return parse(part_of(handle.get(), CURLUPART_URL).value_or(""));
}

Url Url::with_parameter(std::string_view name, std::string_view value) const {
    const UrlHandle handle = parsed(text_);
    set_part(handle.get(), CURLUPART_QUERY, std::string(name) + "=" + std::string(value),
             CURLU_APPENDQUERY | CURLU_URLENCODE);
    return parse(part_of(handle.get(), CURLUPART_URL).value_or(""));
}

std::string Url::origin() const {
    const bool is_ipv6 = host_.find(':') != std::string::npos;
    return std::string(is_https_ ? "https://" : "http://") + (is_ipv6 ? "[" + host_ + "]" : host_) + ":" +
           std::to_string(port_);
}

std::string Url::shown() const {
    return origin() + path_;
}

bool is_private_address(std::string_view address) {
    const std::string text(address.substr(0, address.find('%')));  // Without the zone of a link-local address.
    std::array<std::uint8_t, 4> ipv4{};
    if (::inet_pton(AF_INET, text.c_str(), ipv4.data()) == 1) return is_private_ipv4(ipv4);
    std::array<std::uint8_t, 16> ipv6{};
    if (::inet_pton(AF_INET6, text.c_str(), ipv6.data()) == 1) return is_private_ipv6(ipv6);
    return true;
}

}  // namespace lamina::store
