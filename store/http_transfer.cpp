#include "store/http_transfer.h"

#include "store/error.h"
#include "store/http_fields.h"
#include "store/printable.h"

#include <sys/socket.h>
#include <unistd.h>

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>

// libcurl calls back on the client's thread: header lines, pieces of the body, and before a request is sent, the
// address it goes to. When the reader is 1 MiB behind, the transfer is paused. Whether a transfer is too slow is
// decided here and not by libcurl, whose clock also runs while a transfer is paused or waits for one of the few
// connections.
namespace lamina::store {

namespace {

constexpr std::size_t kMaxBufferedBytes = 1 << 20;
constexpr std::size_t kMaxHeaderBytes = 256 << 10;
constexpr long kMaxConnectionAgeSeconds = 60;

template <class Value>
void set(CURL* easy, CURLoption option, Value value) {
    const CURLcode status = ::curl_easy_setopt(easy, option, value);
    if (status != CURLE_OK) throw Error(Errc::internal, std::string("libcurl: ") + ::curl_easy_strerror(status));
}

std::string environment(const char* lower, const char* upper) {
    const char* value = ::getenv(lower);
    if (!value && upper) value = ::getenv(upper);
    return value ? value : "";
}

const std::string& proxy_of(const HttpRequest& request) {
    return request.url.is_https() ? request.proxy.https : request.proxy.http;
}

// As curl reads no_proxy: "*", or names of which the host is one or ends with one.
bool is_excepted(std::string_view host, std::string_view exceptions) {
    while (!exceptions.empty()) {
        const std::size_t end = exceptions.find_first_of(", ");
        std::string_view name = exceptions.substr(0, end);
        exceptions.remove_prefix(end == std::string_view::npos ? exceptions.size() : end + 1);
        if (name == "*") return true;
        while (name.starts_with('.')) name.remove_prefix(1);
        if (name.empty()) continue;
        const std::string wanted = lower_case(name);
        const std::string have = lower_case(host);
        if (have == wanted || have.ends_with("." + wanted)) return true;
    }
    return false;
}

std::string address_text(const sockaddr& address) {
    std::array<char, INET6_ADDRSTRLEN> text{};
    const void* bytes = nullptr;
    if (address.sa_family == AF_INET) bytes = &reinterpret_cast<const sockaddr_in&>(address).sin_addr;
    if (address.sa_family == AF_INET6) bytes = &reinterpret_cast<const sockaddr_in6&>(address).sin6_addr;
    if (!bytes || !::inet_ntop(address.sa_family, bytes, text.data(), text.size())) return "";
    return text.data();
}

}  // namespace

ProxySettings ProxySettings::from_environment() {
    const std::string all = environment("all_proxy", "ALL_PROXY");
    ProxySettings settings{.http = environment("http_proxy", nullptr),  // HTTP_PROXY may be a request's field in CGI.
                           .https = environment("https_proxy", "HTTPS_PROXY"),
                           .exceptions = environment("no_proxy", "NO_PROXY")};
    if (settings.http.empty()) settings.http = all;
    if (settings.https.empty()) settings.https = all;
    return settings;
}

HttpTransfer::HttpTransfer(HttpRequest request, const HttpLimits& limits)
    : limits_(limits),
      request_(std::move(request)),
      is_proxied_(!proxy_of(request_).empty() && !is_excepted(request_.url.host(), request_.proxy.exceptions)),
      easy_(::curl_easy_init()) {
    if (!easy_) throw Error(Errc::internal, "libcurl: no memory for a transfer");
    try {
        set_options();
    } catch (...) {  // The destructor does not run for a constructor that throws.
        ::curl_slist_free_all(fields_);
        ::curl_easy_cleanup(easy_);
        throw;
    }
}

HttpTransfer::~HttpTransfer() {
    ::curl_easy_cleanup(easy_);
    ::curl_slist_free_all(fields_);
}

void HttpTransfer::set_options() {
    set(easy_, CURLOPT_PRIVATE, this);
    set(easy_, CURLOPT_ERRORBUFFER, error_text_.data());
    set(easy_, CURLOPT_URL, request_.url.text().c_str());
    set(easy_, CURLOPT_PROTOCOLS_STR, "http,https");
    set(easy_, CURLOPT_FOLLOWLOCATION, 0L);
    set(easy_, CURLOPT_HTTP09_ALLOWED, 0L);
    set(easy_, CURLOPT_NETRC, static_cast<long>(CURL_NETRC_IGNORED));
    set(easy_, CURLOPT_NOSIGNAL, 1L);
    set(easy_, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    set(easy_, CURLOPT_CONNECTTIMEOUT_MS, static_cast<long>(limits_.connect.count()));
    set(easy_, CURLOPT_MAXAGE_CONN, kMaxConnectionAgeSeconds);
    set(easy_, CURLOPT_TCP_KEEPALIVE, 1L);
    set(easy_, CURLOPT_USERAGENT, "lamina");
    // Large bodies at once move faster over connections of their own than as streams of one, and pause one by one.
    set(easy_, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    set(easy_, CURLOPT_PROXY, is_proxied_ ? proxy_of(request_).c_str() : "");
    set(easy_, CURLOPT_NOPROXY, "");
    for (const std::string& field : request_.fields) {
        curl_slist* const longer = ::curl_slist_append(fields_, field.c_str());
        if (!longer) throw Error(Errc::internal, "libcurl: no memory for a header");
        fields_ = longer;
    }
    set_body_options();
    set(easy_, CURLOPT_HTTPHEADER, fields_);
    set_tls_options();
    set(easy_, CURLOPT_HEADERDATA, this);
    set(
        easy_, CURLOPT_HEADERFUNCTION, +[](char* data, std::size_t, std::size_t count, void* self) {
            return static_cast<HttpTransfer*>(self)->take_header({data, count});
        });
    set(easy_, CURLOPT_WRITEDATA, this);
    set(
        easy_, CURLOPT_WRITEFUNCTION, +[](char* data, std::size_t, std::size_t count, void* self) {
            return static_cast<HttpTransfer*>(self)->take_body(std::as_bytes(std::span(data, count)));
        });
    set(easy_, CURLOPT_PREREQDATA, this);
    set(
        easy_, CURLOPT_PREREQFUNCTION,
        +[](void* self, char* address, char*, int, int) { return static_cast<HttpTransfer*>(self)->begin(address); });
    set(easy_, CURLOPT_OPENSOCKETDATA, this);
    set(
        easy_, CURLOPT_OPENSOCKETFUNCTION, +[](void* self, curlsocktype, curl_sockaddr* address) -> curl_socket_t {
            const auto& transfer = *static_cast<HttpTransfer*>(self);
            const bool is_checked = !transfer.request_.may_be_private && !transfer.is_proxied_;
            if (is_checked && is_private_address(address_text(address->addr))) return CURL_SOCKET_BAD;
            return ::socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
        });
}

void HttpTransfer::set_body_options() {
    if (request_.method == "HEAD") return set(easy_, CURLOPT_NOBODY, 1L);
    if (!request_.body && request_.method == "GET") return set(easy_, CURLOPT_HTTPGET, 1L);
    set(easy_, CURLOPT_UPLOAD, 1L);
    set(easy_, CURLOPT_CUSTOMREQUEST, request_.method.c_str());
    set(easy_, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(request_.body ? request_.body_bytes : 0));
    set(easy_, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    request_.fields.emplace_back("Expect:");  // The server's answer would cost a round trip, and few servers give one.
    curl_slist* const longer = ::curl_slist_append(fields_, request_.fields.back().c_str());
    if (!longer) throw Error(Errc::internal, "libcurl: no memory for a header");
    fields_ = longer;
    set(easy_, CURLOPT_READDATA, this);
    set(
        easy_, CURLOPT_READFUNCTION, +[](char* data, std::size_t, std::size_t count, void* self) {
            return static_cast<HttpTransfer*>(self)->give_body(std::as_writable_bytes(std::span(data, count)));
        });
}

void HttpTransfer::set_tls_options() {
    if (!request_.tls) return;
    const TlsSettings& tls = *request_.tls;
    if (!tls.is_verified) {
        set(easy_, CURLOPT_SSL_VERIFYPEER, 0L);
        set(easy_, CURLOPT_SSL_VERIFYHOST, 0L);
    }
    if (!tls.authorities_pem.empty()) {  // The system's stay trusted: libcurl also reads its folder of certificates.
        curl_blob blob{.data = const_cast<char*>(tls.authorities_pem.data()),
                       .len = tls.authorities_pem.size(),
                       .flags = CURL_BLOB_COPY};
        set(easy_, CURLOPT_CAINFO_BLOB, &blob);
    }
    if (tls.certificate_path.empty()) return;
    set(easy_, CURLOPT_SSLCERT, tls.certificate_path.c_str());
    if (!tls.key_path.empty()) set(easy_, CURLOPT_SSLKEY, tls.key_path.c_str());
}

int HttpTransfer::begin(std::string_view peer_address) {
    const std::lock_guard lock(mutex_);
    peer_address_ = peer_address;
    sent_at_ = window_begin_ = Clock::now();
    window_bytes_ = 0;
    // Connections are kept: this one may have been opened for a request that was allowed more.
    const bool is_refused = !request_.may_be_private && !is_proxied_ && is_private_address(peer_address);
    return is_refused ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

std::size_t HttpTransfer::take_header(std::string_view line) {
    const std::lock_guard lock(mutex_);
    const std::size_t count = line.size();
    header_bytes_ += count;
    if (header_bytes_ > kMaxHeaderBytes) return 0;
    window_bytes_ += count;
    while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
    if (has_header_) return count;  // A trailer: nothing that we look at.
    if (line.starts_with("HTTP/")) {
        header_lines_.clear();  // After a reply of 1xx comes another.
    } else if (!line.empty()) {
        header_lines_.emplace_back(line);
    } else {
        long status = 0;
        ::curl_easy_getinfo(easy_, CURLINFO_RESPONSE_CODE, &status);
        status_ = static_cast<int>(status);
        has_header_ = status_ >= 200;
        changed_.notify_all();
    }
    return count;
}

std::size_t HttpTransfer::take_body(std::span<const std::byte> data) {
    const std::lock_guard lock(mutex_);
    if (is_given_up_) return 0;
    if (buffered_bytes_ >= kMaxBufferedBytes) {
        is_paused_ = true;
        return CURL_WRITEFUNC_PAUSE;
    }
    received_.emplace_back(data.begin(), data.end());
    buffered_bytes_ += data.size();
    window_bytes_ += data.size();
    changed_.notify_all();
    return data.size();
}

std::size_t HttpTransfer::give_body(std::span<std::byte> out) {
    try {
        const std::size_t count = request_.body ? request_.body->read(out) : 0;
        const std::lock_guard lock(mutex_);
        window_bytes_ += count;
        sent_at_ = Clock::now();  // The reply can be waited for from the last byte on.
        return is_given_up_ ? CURL_READFUNC_ABORT : count;
    } catch (const Error& error) {  // libcurl is C: it must not pass through.
        const std::lock_guard lock(mutex_);
        failure_ = error;
        return CURL_READFUNC_ABORT;
    }
}

void HttpTransfer::fail(Errc code, const std::string& why) {
    if (!failure_) failure_.emplace(code, request_.method + " " + request_.url.shown() + ": " + why);
    is_given_up_ = true;
    changed_.notify_all();
}

void HttpTransfer::finish(CURLcode code) {
    const std::lock_guard lock(mutex_);
    is_over_ = true;
    changed_.notify_all();
    if (code == CURLE_OK || failure_) return;
    std::string why = error_text_[0] != '\0' ? error_text_.data() : ::curl_easy_strerror(code);
    std::replace_if(
        why.begin(), why.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
    const bool is_checked = !request_.may_be_private && !is_proxied_;
    if (is_checked && (code == CURLE_ABORTED_BY_CALLBACK || code == CURLE_COULDNT_CONNECT)) {
        return fail(Errc::unavailable,
                    "no connection to a public address, and a private one is not meant by this registry");
    }
    if (header_bytes_ > kMaxHeaderBytes) return fail(Errc::malformed, "a header of more than 256 KiB");
    if (code == CURLE_OPERATION_TIMEDOUT) return fail(Errc::timed_out, why);
    if (code == CURLE_UNSUPPORTED_PROTOCOL || code == CURLE_WEIRD_SERVER_REPLY) return fail(Errc::malformed, why);
    fail(Errc::unavailable, why);
}

void HttpTransfer::fail_if_slow() {
    const std::lock_guard lock(mutex_);
    if (is_over_ || is_given_up_ || !sent_at_) return;
    const auto now = Clock::now();
    if (is_paused_) {
        window_begin_ = now;
        window_bytes_ = 0;
        return;
    }
    if (!has_header_) {
        const bool is_quick = request_.method == "GET" || request_.method == "HEAD";
        if (now - *sent_at_ > (is_quick ? limits_.reply : limits_.long_reply)) fail(Errc::timed_out, "no reply");
        return;
    }
    if (now - window_begin_ < limits_.slow_window) return;
    const auto seconds = std::chrono::duration<double>(now - window_begin_).count();
    if (static_cast<double>(window_bytes_) < seconds * static_cast<double>(limits_.slow_bytes_per_second)) {
        fail(Errc::timed_out, "less than " + std::to_string(limits_.slow_bytes_per_second) + " bytes a second");
    }
    window_begin_ = now;
    window_bytes_ = 0;
}

bool HttpTransfer::is_given_up() const {
    const std::lock_guard lock(mutex_);
    return is_given_up_;
}

void HttpTransfer::resume_if_drained() {
    {
        const std::lock_guard lock(mutex_);
        if (!is_paused_ || is_over_ || buffered_bytes_ > kMaxBufferedBytes / 2) return;
        is_paused_ = false;
        window_begin_ = Clock::now();
        window_bytes_ = 0;
    }
    ::curl_easy_pause(easy_, CURLPAUSE_CONT);  // Calls take_body().
}

void HttpTransfer::throw_failure() const {
    throw Error(*failure_);
}

void HttpTransfer::wait_for_header(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    const bool is_ready = changed_.wait(lock, stop, [&] { return has_header_ || is_over_ || failure_; });
    if (!is_ready) throw Error(Errc::cancelled, request_.method + " " + request_.url.shown() + ": cancelled");
    if (failure_ && !has_header_) throw_failure();
    if (!has_header_) throw Error(Errc::unavailable, request_.method + " " + request_.url.shown() + ": no reply");
}

std::size_t HttpTransfer::read(std::span<std::byte> out, const std::stop_token& stop, bool& made_room) {
    std::unique_lock lock(mutex_);
    const bool is_ready = changed_.wait(lock, stop, [&] { return !received_.empty() || is_over_ || failure_; });
    if (!is_ready) throw Error(Errc::cancelled, request_.method + " " + request_.url.shown() + ": cancelled");
    if (received_.empty() && failure_) throw_failure();
    std::size_t done = 0;
    while (done < out.size() && !received_.empty()) {
        const auto rest = std::span<const std::byte>(received_.front()).subspan(front_offset_);
        const std::size_t count = std::min(rest.size(), out.size() - done);
        std::copy_n(rest.begin(), count, out.begin() + static_cast<std::ptrdiff_t>(done));
        done += count;
        front_offset_ += count;
        if (front_offset_ < received_.front().size()) continue;
        received_.pop_front();
        front_offset_ = 0;
    }
    buffered_bytes_ -= done;
    made_room = is_paused_ && buffered_bytes_ <= kMaxBufferedBytes / 2;
    return done;
}

void HttpTransfer::give_up() {
    const std::lock_guard lock(mutex_);
    is_given_up_ = true;
}

}  // namespace lamina::store
