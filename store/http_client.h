#pragma once

#include "store/byte_stream.h"
#include "store/http_url.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

namespace lamina::store {

/// How the other end of https proves who it is.
struct TlsSettings {
    bool is_verified = true;
    std::string authorities_pem;   ///< Certificates that are trusted beside the system's.
    std::string certificate_path;  ///< Our own, PEM; empty: none.
    std::string key_path;
    bool operator==(const TlsSettings&) const = default;
};

/// Proxies, as the variables http_proxy, https_proxy and no_proxy say them. Empty: none.
struct ProxySettings {
    std::string http;
    std::string https;
    std::string exceptions;
    static ProxySettings from_environment();  ///< Either case; all_proxy where there is no other.
};

struct HttpLimits {
    std::chrono::milliseconds connect{15'000};
    std::chrono::milliseconds reply{30'000};        ///< From the sent request to the reply's header.
    std::chrono::milliseconds long_reply{300'000};  ///< The same for PUT, POST and PATCH: storing a blob takes long.
    std::chrono::milliseconds slow_window{10'000};
    std::uint64_t slow_bytes_per_second = 1024;  ///< Less than that over the window: the transfer fails.
};

struct HttpRequest {
    std::string method = "GET";
    Url url;
    std::vector<std::string> fields;  ///< "Accept: text/plain"
    std::shared_ptr<const TlsSettings> tls;
    ProxySettings proxy;
    bool may_be_private = true;        ///< false: fails when the host's address is a private one (is_private_address).
    std::unique_ptr<ByteSource> body;  ///< Of `body_bytes`; read by the client's thread, so it must not wait.
    std::uint64_t body_bytes = 0;
};

/// The reply to one request. Its body is received while it is read, at most 1 MiB ahead. One thread.
class HttpReply : public ByteSource {
public:
    virtual int status() const = 0;
    virtual std::string field(std::string_view name) const = 0;  ///< Several are joined by ", "; empty: none.
    virtual const std::string& peer_address() const = 0;         ///< Of the server, or the proxy.
    /// 0: the body is complete, as the server framed it. unavailable, timed_out, cancelled, as HttpClient::send().
    std::size_t read(std::span<std::byte> out) override = 0;
    /// The whole body, at most `limit_bytes`, else malformed.
    std::vector<std::byte> read_all(std::uint64_t limit_bytes);
};

/// Requests over kept connections, at most 8 to a host; whoever asks more waits for one. HTTP/1.1, http and https only;
/// no redirect is followed, no credential known, no cookie kept: that is the caller's (registry_session.h).
/// Thread-safe; a thread of its own moves the bytes.
///
/// Errors name method and URL without its query. unavailable: no connection, or it broke; timed_out: HttpLimits;
/// cancelled: `stop`; malformed: a reply that is no HTTP, or a header of more than 256 KiB.
class HttpClient {
public:
    HttpClient() : HttpClient(HttpLimits()) {}
    explicit HttpClient(const HttpLimits& limits);
    ~HttpClient();  ///< No reply may be left.
    HttpClient(const HttpClient&) = delete;
    HttpClient& operator=(const HttpClient&) = delete;

    /// Returns when the reply's header is there, whatever its status.
    std::unique_ptr<HttpReply> send(HttpRequest request, const std::stop_token& stop);

private:
    class Engine;
    const HttpLimits limits_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace lamina::store
