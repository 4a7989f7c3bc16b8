#pragma once

#include "store/error.h"
#include "store/http_client.h"

#include <curl/curl.h>

#include <array>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <mutex>

/// The inside of http_client.cpp: one request on its way, between the thread that asked and the one that moves bytes.
namespace lamina::store {

/// libcurl's side is called on the client's thread only, the reader's on any one thread.
class HttpTransfer {
public:
    HttpTransfer(HttpRequest request, const HttpLimits& limits);
    ~HttpTransfer();
    HttpTransfer(const HttpTransfer&) = delete;
    HttpTransfer& operator=(const HttpTransfer&) = delete;

    // For the client's thread.
    CURL* easy() const noexcept { return easy_; }
    void finish(CURLcode code);  ///< The transfer is over.
    void fail_if_slow();         ///< Ends it in the eyes of its reader when a limit is passed.
    bool is_given_up() const;
    void resume_if_drained();  ///< Goes on receiving once the reader has made room.

    // For the reader.
    void wait_for_header(const std::stop_token& stop);
    /// `made_room`: the client's thread should look.
    std::size_t read(std::span<std::byte> out, const std::stop_token& stop, bool& made_room);
    int status() const noexcept { return status_; }
    const std::vector<std::string>& header_lines() const noexcept { return header_lines_; }
    const std::string& peer_address() const noexcept { return peer_address_; }
    void give_up();  ///< The reader goes away.

private:
    using Clock = std::chrono::steady_clock;
    void set_options();
    void set_body_options();
    void set_tls_options();
    void fail(Errc code, const std::string& why);
    [[noreturn]] void throw_failure() const;
    void note_progress(std::size_t bytes);
    std::size_t take_header(std::string_view line);
    std::size_t take_body(std::span<const std::byte> data);
    std::size_t give_body(std::span<std::byte> out);
    int begin(std::string_view peer_address);

    const HttpLimits limits_;
    HttpRequest request_;
    const bool is_proxied_;
    CURL* easy_ = nullptr;
    curl_slist* fields_ = nullptr;
    std::array<char, CURL_ERROR_SIZE> error_text_{};

    mutable std::mutex mutex_;  // A leaf. Guards all below.
    std::condition_variable_any changed_;
    std::vector<std::string> header_lines_;
    std::size_t header_bytes_ = 0;
    int status_ = 0;
    std::string peer_address_;
    bool has_header_ = false;
    bool is_over_ = false;
    bool is_given_up_ = false;
    bool is_paused_ = false;
    std::optional<Error> failure_;
    std::deque<std::vector<std::byte>> received_;
    std::size_t front_offset_ = 0;  ///< Of received_.front(), already read.
    std::size_t buffered_bytes_ = 0;
    std::optional<Clock::time_point> sent_at_;  ///< A connection was there.
    Clock::time_point window_begin_;
    std::uint64_t window_bytes_ = 0;
};

}  // namespace lamina::store
