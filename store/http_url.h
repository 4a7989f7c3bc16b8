#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lamina::store {

/// An absolute http or https URL, read by libcurl, so that what is checked here and what is connected to cannot differ.
class Url {
public:
    /// malformed: another scheme, user information, no host, control characters, longer than 8 KiB.
    static Url parse(std::string_view text);
    /// What a Location or Link field means (RFC 3986, section 5); malformed as above.
    Url resolve(std::string_view reference) const;
    /// With one more parameter in its query; the value is escaped.
    Url with_parameter(std::string_view name, std::string_view value) const;

    const std::string& text() const noexcept { return text_; }
    bool is_https() const noexcept { return is_https_; }
    const std::string& host() const noexcept { return host_; }  ///< IPv6 addresses without brackets.
    std::uint16_t port() const noexcept { return port_; }
    std::string origin() const;  ///< "https://host:443": what credentials belong to.
    /// Without the query, which may hold a signature: what may stand in logs and errors.
    std::string shown() const;

private:
    Url() = default;
    std::string text_;
    std::string host_;
    std::string path_;
    std::uint16_t port_ = 0;
    bool is_https_ = false;
};

/// True for addresses that only machines nearby have: loopback, private, link-local, shared, unspecified, multicast;
/// also when IPv6 wraps such an IPv4 address. What is no numeric address counts as private.
bool is_private_address(std::string_view address);

}  // namespace lamina::store
