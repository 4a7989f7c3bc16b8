// HTTP/1.1 over a Unix socket, one request at a time, read as it arrives: the body goes in pieces to the caller, who
// splits it into lines or copies it out. A daemon that does not answer is started once: `laminad --detach` returns when
// its socket serves. When two clients do so at once, the loser's daemon ends with "busy" and both reach the winner's.

#include "client/connection.h"

#include <sys/wait.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <spawn.h>

#include <array>
#include <chrono>
#include <thread>

extern char** environ;

namespace lamina::client {

namespace asio = boost::asio;
namespace http = boost::beast::http;
namespace json = boost::json;

namespace {

constexpr int kBusyExit = 3;  // laminad's exit status when another daemon has the store.
constexpr auto kStartLimit = std::chrono::seconds(15);
constexpr auto kRetryPause = std::chrono::milliseconds(50);

[[noreturn]] void connection_failure(const std::string& message) {
    throw api::FailureError({"connection", message});
}

struct StartResult {
    int exit_status = 0;
    std::string message;
};

StartResult start_daemon(const api::Places& places) {
    const std::string program = api::companion_program("laminad", "daemon");
    std::array<int, 2> pipe_ends{};
    if (::pipe2(pipe_ends.data(), O_CLOEXEC) != 0) connection_failure("cannot make a pipe");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
    std::vector<std::string> words{program, "--detach", "--store", places.store, "--socket", places.socket};
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_t child = 0;
    const int failed = ::posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(pipe_ends[1]);
    StartResult result;
    std::array<char, 1024> piece{};
    while (failed == 0) {
        const ssize_t got = ::read(pipe_ends[0], piece.data(), piece.size());
        if (got <= 0) break;
        result.message.append(piece.data(), static_cast<std::size_t>(got));
    }
    ::close(pipe_ends[0]);
    if (failed != 0) connection_failure("cannot start " + program + ": " + std::strerror(failed));
    int status = 0;
    ::waitpid(child, &status, 0);
    result.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    while (!result.message.empty() && result.message.back() == '\n') result.message.pop_back();
    return result;
}

/// Splits what arrives into lines; each is one JSON object.
class LineReader {
public:
    explicit LineReader(const Connection::OnEvent& on_event) : on_event_(on_event) {}
    void add(std::string_view bytes) {
        pending_ += bytes;
        std::size_t begin = 0;
        for (auto end = pending_.find('\n'); end != std::string::npos; end = pending_.find('\n', begin)) {
            take(std::string_view(pending_).substr(begin, end - begin));
            begin = end + 1;
        }
        pending_.erase(0, begin);
    }
    json::value finish() {
        if (!result_) connection_failure("the daemon went away before it was done; see its log beside the socket");
        return std::move(*result_);
    }

private:
    void take(std::string_view line) {
        json::value value = api::parse_reply_value(line);
        if (!value.is_object()) api::bad_reply("an event is no object");
        json::object& event = value.as_object();
        if (json::value* const failure = event.if_contains("error")) {
            throw api::FailureError(api::parse_reply<api::Failure>(*failure));
        }
        if (json::value* const result = event.if_contains("result")) {
            result_ = std::move(*result);
            return;
        }
        on_event_(event);
    }
    const Connection::OnEvent& on_event_;
    std::string pending_;
    std::optional<json::value> result_;
};

}  // namespace

struct Connection::Request {
    http::verb method = http::verb::get;
    std::string target;
    std::string body;
};

class Connection::Impl {
public:
    Impl(const api::Places& places, bool may_start) : socket_(context_), places_(places), may_start_(may_start) {
        api::check_socket_path(places.socket);
        connect();
    }

    /// Sends the request and passes the body's bytes on as they come; an error status becomes a FailureError.
    /// A daemon that is killed accepts connections until the kernel has taken it down: what changes nothing is asked
    /// again, once.
    void exchange(const Request& request, const OnBytes& on_bytes) {
        std::optional<Reply> reply;
        boost::system::error_code error = ask(request, reply.emplace());
        if (error && request.method == http::verb::get && buffer_.size() == 0) {
            connect();
            error = ask(request, reply.emplace());
        }
        if (error) connection_failure("the daemon at " + places_.socket + " gave no reply: " + error.message());
        Reply& parser = *reply;
        const bool is_good = parser.get().result() == http::status::ok;
        std::string refusal;
        std::array<char, 65536> piece;
        while (!parser.is_done()) {
            parser.get().body().data = piece.data();
            parser.get().body().size = piece.size();
            http::read(socket_, buffer_, parser, error);
            if (error == http::error::need_buffer) error = {};
            if (error) connection_failure("the daemon went away in the middle of its reply: " + error.message());
            const std::string_view bytes(piece.data(), piece.size() - parser.get().body().size);
            if (is_good) {
                if (!bytes.empty()) on_bytes(bytes);
            } else {
                refusal += bytes;
            }
        }
        if (!is_good) throw_refusal(refusal);
    }

private:
    using Reply = http::response_parser<http::buffer_body>;

    /// Sends the request and reads the header of the reply.
    boost::system::error_code ask(const Request& request, Reply& reply) {
        boost::system::error_code error;
        reply.body_limit(boost::none);
        http::request<http::string_body> message(request.method, request.target, 11);
        message.set(http::field::host, "lamina");
        message.set(http::field::content_type, "application/json");
        message.body() = request.body;
        message.prepare_payload();
        http::write(socket_, message, error);
        if (!error) http::read_header(socket_, buffer_, reply, error);
        return error;
    }

    void connect() {
        if (try_connect()) return;
        if (!may_start_) connection_failure("no daemon answers at " + places_.socket + "; lamina daemon start");
        start_until_it_answers();
    }

    /// A daemon that ends lets go of the socket before the store, and one that starts takes the store first: "busy"
    /// passes in both cases.
    void start_until_it_answers() {
        const auto limit = std::chrono::steady_clock::now() + kStartLimit;
        while (true) {
            const StartResult started = start_daemon(places_);
            const bool is_busy = started.exit_status == kBusyExit;
            if (started.exit_status != 0 && !is_busy) {
                connection_failure(started.message.empty() ? "the daemon did not start" : started.message);
            }
            if (try_connect()) return;
            if (std::chrono::steady_clock::now() > limit) {
                connection_failure(started.message.empty() ? "the daemon does not answer at " + places_.socket
                                                           : started.message);
            }
            std::this_thread::sleep_for(kRetryPause);
        }
    }

    [[noreturn]] static void throw_refusal(const std::string& body) {
        const json::value value = api::parse_reply_value(body);
        const json::value* const failure = value.is_object() ? value.as_object().if_contains("error") : nullptr;
        if (!failure) api::bad_reply("an error without \"error\"");
        throw api::FailureError(api::parse_reply<api::Failure>(*failure));
    }

    bool try_connect() {
        boost::system::error_code error;
        socket_ = asio::local::stream_protocol::socket(context_);
        socket_.connect(asio::local::stream_protocol::endpoint(places_.socket), error);
        if (!error) return true;
        const bool is_absent = error == boost::system::errc::no_such_file_or_directory ||
                               error == boost::system::errc::connection_refused ||
                               error == boost::system::errc::not_a_directory;
        if (!is_absent) connection_failure("socket " + places_.socket + ": " + error.message());
        return false;
    }

    asio::io_context context_;
    asio::local::stream_protocol::socket socket_;
    api::Places places_;
    bool may_start_;
    boost::beast::flat_buffer buffer_;
};

Connection::Connection(const api::Places& places, bool may_start) : impl_(std::make_unique<Impl>(places, may_start)) {}
Connection::~Connection() = default;
Connection::Connection(Connection&&) noexcept = default;

json::value Connection::get(const std::string& target) {
    std::string body;
    impl_->exchange({.method = http::verb::get, .target = target, .body = {}},
                    [&](std::string_view bytes) { body += bytes; });
    return api::parse_reply_value(body);
}

json::value Connection::post(std::string_view path, const std::string& request_body) {
    std::string body;
    impl_->exchange({.method = http::verb::post, .target = std::string(path), .body = request_body},
                    [&](std::string_view bytes) { body += bytes; });
    return api::parse_reply_value(body);
}

json::value Connection::remove(const std::string& target) {
    std::string body;
    impl_->exchange({.method = http::verb::delete_, .target = target, .body = {}},
                    [&](std::string_view bytes) { body += bytes; });
    return api::parse_reply_value(body);
}

json::value Connection::post_stream(std::string_view path, const std::string& body, const OnEvent& on_event) {
    LineReader lines(on_event);
    impl_->exchange({.method = http::verb::post, .target = std::string(path), .body = body},
                    [&](std::string_view bytes) { lines.add(bytes); });
    return lines.finish();
}

void Connection::get_stream(const std::string& target, const OnEvent& on_event) {
    LineReader lines(on_event);
    impl_->exchange({.method = http::verb::get, .target = target, .body = {}},
                    [&](std::string_view bytes) { lines.add(bytes); });
    lines.finish();
}

void Connection::download(const std::string& target, const OnBytes& on_bytes) {
    impl_->exchange({.method = http::verb::get, .target = target, .body = {}}, on_bytes);
}

std::string with_query(std::string_view path,
                       std::initializer_list<std::pair<std::string_view, std::string_view>> parameters) {
    std::string target(path);
    char separator = '?';
    for (const auto& [key, value] : parameters) {
        if (value.empty()) continue;
        target += separator;
        target += std::string(key) + "=" + api::percent_encode(value);
        separator = '&';
    }
    return target;
}

}  // namespace lamina::client
