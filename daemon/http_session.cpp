// The handler runs on the pool and writes the body into a channel; the coroutine here sends each piece as it comes, as
// one HTTP chunk. Nothing is sent before the first piece, so that a request that fails at once gets a proper status;
// one that fails later ends with an error line (JSON lines) or a cut connection (raw bytes: half a file must not look
// whole).

#include "daemon/http_session.h"

#include "daemon/log.h"

#include <sys/socket.h>

#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/http.hpp>

#include <chrono>

namespace lamina::daemon {

namespace asio = boost::asio;
namespace http = boost::beast::http;

namespace {

constexpr std::uint64_t kMaxBodyBytes = 1 << 20;
constexpr std::uint32_t kMaxHeaderBytes = 16 << 10;
constexpr auto kRequestLimit = std::chrono::seconds(30);

ApiRequest api_request(const http::request<http::string_body>& message) {
    ApiRequest request;
    request.method = std::string(message.method_string());
    const std::string target(message.target());
    const auto question = target.find('?');
    request.path = target.substr(0, question);
    request.body = message.body();
    std::string_view rest =
        question == std::string::npos ? std::string_view() : std::string_view(target).substr(question + 1);
    while (!rest.empty()) {
        const std::string_view pair = rest.substr(0, rest.find('&'));
        rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
        const auto equals = pair.find('=');
        if (equals == std::string_view::npos) continue;
        request.query[api::percent_decode(pair.substr(0, equals))] = api::percent_decode(pair.substr(equals + 1));
    }
    return request;
}

std::optional<api::Failure> run_contained(const Handlers& handlers, const ApiRequest& request, ReplyChannel& out,
                                          std::stop_token stop) noexcept {
    try {
        handlers.call(request, out, std::move(stop));
        return std::nullopt;
    } catch (const store::Error& error) {
        return failure_of(error);
    } catch (const api::FailureError& error) {
        return error.failure();
    } catch (const std::exception& error) {
        return api::Failure{"internal", error.what()};
    }
}

}  // namespace

HttpSession::HttpSession(asio::io_context& context, Socket socket, asio::thread_pool& pool, const Handlers& handlers)
    : context_(context), socket_(std::move(socket)), pool_(pool), handlers_(handlers) {}

asio::awaitable<void> HttpSession::run() {
    while (auto request = co_await read_request()) {
        const bool may_go_on = co_await answer(*request);
        if (!may_go_on) break;
    }
}

asio::awaitable<std::optional<ApiRequest>> HttpSession::read_request() {
    http::request_parser<http::string_body> parser;
    parser.body_limit(kMaxBodyBytes);
    parser.header_limit(kMaxHeaderBytes);
    boost::system::error_code error;
    // An idle connection may wait for ever for its next request; one that has begun may not.
    if (buffer_.size() == 0) {
        co_await socket_.async_wait(Socket::wait_read, asio::redirect_error(asio::use_awaitable, error));
        if (error || is_stopping_) co_return std::nullopt;
    }
    asio::steady_timer limit(context_, kRequestLimit);
    limit.async_wait([self = shared_from_this()](boost::system::error_code is_cancelled) {
        boost::system::error_code already_gone;
        if (!is_cancelled) self->socket_.shutdown(Socket::shutdown_both, already_gone);
    });
    co_await http::async_read(socket_, buffer_, parser, asio::redirect_error(asio::use_awaitable, error));
    limit.cancel();
    std::optional<api::Failure> refusal;
    if (error == http::error::end_of_stream) co_return std::nullopt;
    if (error) refusal = api::Failure{"usage", "the request is no HTTP that is understood: " + error.message()};
    if (!refusal) {
        try {
            co_return api_request(parser.get());
        } catch (const api::FailureError& bad_query) {  // Answered below: a handler may not co_await.
            refusal = bad_query.failure();
        }
    }
    co_await send_failure(*refusal);
    co_return std::nullopt;
}

std::shared_ptr<ReplyChannel> HttpSession::start(const ApiRequest& request) {
    auto channel = std::make_shared<ReplyChannel>(context_);
    stop_source_ = std::stop_source();
    asio::post(
        pool_, [&handlers = handlers_, request, channel, stop = stop_source_.get_token(), self = shared_from_this()] {
            const auto failure = run_contained(handlers, request, *channel, stop);
            if (failure) {
                log::warning(request.method + " " + request.path + ": " + failure->code + ": " + failure->message);
            } else {
                log::info(request.method + " " + request.path);
            }
            channel->finish(failure);
        });
    return channel;
}

asio::awaitable<bool> HttpSession::answer(const ApiRequest& request) {
    const std::shared_ptr<ReplyChannel> channel = start(request);
    const std::string_view content_type = Handlers::content_type(request);
    bool is_begun = false;
    while (true) {
        const ReplyChannel::Piece piece = co_await channel->next();
        boost::system::error_code error;
        if (piece.is_last) {
            if (piece.failure && !is_begun) {
                co_await send_failure(*piece.failure);
                co_return !is_stopping_;
            }
            const bool is_lines = content_type.find("ndjson") != std::string_view::npos;
            if (piece.failure && !is_lines) co_return false;
            if (!is_begun) co_await send_header(content_type);
            if (piece.failure) {
                const boost::json::value line = {{"error", boost::json::value_from(*piece.failure)}};
                co_await send_piece(boost::json::serialize(line) + "\n");
            }
            co_await asio::async_write(socket_, http::make_chunk_last(),
                                       asio::redirect_error(asio::use_awaitable, error));
            co_return !error && !is_stopping_;
        }
        if (!piece.bytes.empty()) {
            if (!is_begun) co_await send_header(content_type);
            is_begun = true;
            co_await send_piece(piece.bytes);
        }
        if (!is_stopping_ && peer_is_gone()) {
            stop_source_.request_stop();
            channel->close();
        }
    }
}

asio::awaitable<void> HttpSession::send_header(std::string_view content_type) {
    http::response<http::empty_body> header(http::status::ok, 11);
    header.set(http::field::content_type, content_type);
    header.chunked(true);
    http::response_serializer<http::empty_body> serializer(header);
    boost::system::error_code error;
    co_await http::async_write_header(socket_, serializer, asio::redirect_error(asio::use_awaitable, error));
}

asio::awaitable<void> HttpSession::send_piece(const std::string& bytes) {
    boost::system::error_code error;
    const auto chunk = http::make_chunk(asio::buffer(bytes));
    co_await asio::async_write(socket_, chunk, asio::redirect_error(asio::use_awaitable, error));
}

asio::awaitable<void> HttpSession::send_failure(const api::Failure& failure) {
    http::response<http::string_body> response(http::int_to_status(http_status_of(failure)), 11);
    response.set(http::field::content_type, "application/json");
    const boost::json::value body = {{"error", boost::json::value_from(failure)}};
    response.body() = boost::json::serialize(body) + "\n";
    response.prepare_payload();
    boost::system::error_code error;
    co_await http::async_write(socket_, response, asio::redirect_error(asio::use_awaitable, error));
}

bool HttpSession::peer_is_gone() {
    char byte = 0;
    const ssize_t got = ::recv(socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

void HttpSession::stop() {
    is_stopping_ = true;
    boost::system::error_code already_gone;
    socket_.shutdown(Socket::shutdown_receive, already_gone);
}

void HttpSession::cancel() {
    stop_source_.request_stop();
}

}  // namespace lamina::daemon
