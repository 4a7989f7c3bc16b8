#include "store/http_client.h"

#include "store/digest.h"
#include "store/error.h"
#include "store/memory_source.h"
#include "support/catch.h"
#include "support/http_server.h"
#include "support/oci_archive.h"

#include <atomic>
#include <condition_variable>
#include <string>
#include <thread>
#include <vector>

using namespace lamina;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;

namespace {

store::HttpRequest get(const std::string& url) {
    return {.url = store::Url::parse(url)};
}

std::string body_of(store::HttpReply& reply) {
    const auto bytes = reply.read_all(100 << 20);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

store::HttpLimits short_limits() {
    return {.connect = 2s, .reply = 300ms, .long_reply = 300ms, .slow_window = 300ms, .slow_bytes_per_second = 1024};
}

/// Lets everybody through at once.
class Gate {
public:
    void wait() {
        std::unique_lock lock(mutex_);
        opened_.wait(lock, [&] { return is_open_; });
    }
    void open() {
        const std::lock_guard lock(mutex_);
        is_open_ = true;
        opened_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable opened_;
    bool is_open_ = false;
};

}  // namespace

TEST_CASE("a reply has its status, its fields without regard to case, and its body", "[store][http]") {
    test::HttpServer server([](const std::string& request, auto& connection) {
        connection.send("HTTP/1.1 103 Early\r\nLink: x\r\n\r\n");
        connection.reply(request.starts_with("GET /a?b=c ") ? 206 : 400, "body", "X-One:  1 \r\nx-one: 2\r\n");
        return true;
    });
    store::HttpClient client;
    const auto reply = client.send(get(server.url("/a?b=c")), {});
    CHECK(reply->status() == 206);
    CHECK(reply->field("X-ONE") == "1, 2");
    CHECK(reply->field("Link").empty());
    CHECK(reply->peer_address() == "127.0.0.1");
    CHECK(body_of(*reply) == "body");
}

TEST_CASE("a large body arrives whole, however slowly it is read", "[store][http]") {
    const std::string body(9'000'001, 'x');
    test::HttpServer server([&](const std::string&, auto& connection) {
        connection.reply(200, body);
        return true;
    });
    store::HttpClient client(short_limits());
    const auto reply = client.send(get(server.url("/")), {});
    std::this_thread::sleep_for(700ms);  // Longer than the window in which a slow transfer fails: this one is paused.
    CHECK(body_of(*reply) == body);
}

TEST_CASE("what is uploaded arrives as it is, and its reply comes back", "[store][http]") {
    std::string received;
    test::HttpServer server([&](const std::string& request, auto& connection) {
        received = request;
        connection.reply(201, "", "Location: /x\r\n");
        return true;
    });
    store::HttpClient client;
    const std::string text(3'000'000, 'y');
    const auto bytes = store::as_bytes(text);
    store::HttpRequest request = get(server.url("/up"));
    request.method = "PUT";
    request.body = std::make_unique<store::MemorySource>(std::vector<std::byte>(bytes.begin(), bytes.end()));
    request.body_bytes = text.size();
    const auto reply = client.send(std::move(request), {});
    CHECK(reply->status() == 201);
    CHECK(reply->field("Location") == "/x");
    CHECK(received.starts_with("PUT /up HTTP/1.1\r\n"));
    CHECK(received.find("Expect") == std::string::npos);
    CHECK(received.ends_with("\r\n\r\n" + text));
}

TEST_CASE("a redirect is the caller's, and a user in an address is nobody's", "[store][http]") {
    std::atomic<int> requests = 0;
    test::HttpServer server([&](const std::string&, auto& connection) {
        ++requests;
        connection.reply(302, "", "Location: /elsewhere\r\nSet-Cookie: a=b\r\n");
        return true;
    });
    store::HttpClient client;
    CHECK(client.send(get(server.url("/")), {})->status() == 302);
    CHECK(client.send(get(server.url("/")), {})->status() == 302);
    CHECK(requests == 2);
}

TEST_CASE("no more than eight connections go to one host, and all requests get their turn", "[store][http]") {
    Gate gate;
    std::atomic<int> waiting = 0;
    test::HttpServer server([&](const std::string&, auto& connection) {
        if (++waiting == 8) gate.open();
        gate.wait();
        connection.reply(200, "x");
        return true;
    });
    store::HttpClient client;
    std::atomic<int> answered = 0;
    {
        std::vector<std::jthread> threads;
        for (int i = 0; i < 30; ++i) {
            threads.emplace_back([&] {
                if (body_of(*client.send(get(server.url("/")), {})) == "x") ++answered;
            });
        }
    }
    CHECK(answered == 30);
    CHECK(server.most_connections() == 8);
}

TEST_CASE("a server that does not answer, stalls or breaks off fails within its limit", "[store][http]") {
    Gate gate;
    test::HttpServer server([&](const std::string& request, auto& connection) {
        if (request.starts_with("GET /silent")) gate.wait();
        if (request.starts_with("GET /stall")) {
            connection.send("HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nabc");
            gate.wait();
        }
        if (request.starts_with("GET /short")) connection.send("HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nabc");
        if (request.starts_with("GET /chunks")) {
            connection.send("HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
        }
        return false;
    });
    store::HttpClient client(short_limits());
    const auto fetch = [&](const std::string& path) {
        return test::error_of([&] { body_of(*client.send(get(server.url(path + "?key=private")), {})); });
    };
    CHECK_THAT(fetch("/silent"), ContainsSubstring("timed_out: GET http://127.0.0.1:") &&
                                     ContainsSubstring("/silent: no reply") && !ContainsSubstring("private"));
    CHECK_THAT(fetch("/stall"), ContainsSubstring("timed_out") && ContainsSubstring("less than 1024 bytes a second"));
    CHECK_THAT(fetch("/short"), ContainsSubstring("unavailable"));
    CHECK_THAT(fetch("/chunks"), ContainsSubstring("unavailable"));
    CHECK_THAT(fetch("/nothing"), ContainsSubstring("unavailable"));
    gate.open();
}

TEST_CASE("headers without end and replies that are no HTTP are refused", "[store][http]") {
    test::HttpServer server([](const std::string& request, auto& connection) {
        if (request.starts_with("GET /old")) connection.send("hello\r\n\r\n");
        if (request.starts_with("GET /long")) {
            connection.send("HTTP/1.1 200 X\r\n");
            for (int i = 0; i < 400; ++i) connection.send("X: " + std::string(1000, 'x') + "\r\n");
        }
        return false;
    });
    store::HttpClient client(short_limits());
    for (const char* path : {"/old", "/long"}) {
        CAPTURE(path);
        CHECK(!test::error_of([&] { client.send(get(server.url(path)), {}); }).empty());
    }
}

TEST_CASE("a private address is connected to only by those who may", "[store][http]") {
    std::atomic<int> requests = 0;
    test::HttpServer server([&](const std::string&, auto& connection) {
        ++requests;
        connection.reply(200, "x");
        return true;
    });
    store::HttpClient client;
    store::HttpRequest first = get(server.url("/"));
    first.may_be_private = false;
    CHECK_THAT(test::error_of([&] { client.send(std::move(first), {}); }), ContainsSubstring("public address"));
    CHECK(body_of(*client.send(get(server.url("/")), {})) == "x");
    store::HttpRequest second = get(server.url("/"));  // The connection is there, and still not for this one.
    second.may_be_private = false;
    CHECK_THAT(test::error_of([&] { client.send(std::move(second), {}); }), ContainsSubstring("public address"));
    CHECK(requests == 1);
}

TEST_CASE("whoever waits can be stopped", "[store][http]") {
    Gate gate;
    test::HttpServer server([&](const std::string&, auto&) {
        gate.wait();
        return false;
    });
    store::HttpClient client;
    std::stop_source stop;
    std::jthread stopper([&] {
        std::this_thread::sleep_for(50ms);
        stop.request_stop();
    });
    CHECK_THAT(test::error_of([&] { client.send(get(server.url("/")), stop.get_token()); }),
               ContainsSubstring("cancelled"));
    gate.open();
}

TEST_CASE("proxies are used for their scheme and not for exceptions", "[store][http]") {
    test::HttpServer server([](const std::string& request, auto& connection) {
        connection.reply(200, request.substr(0, request.find('\r')));
        return true;
    });
    store::HttpClient client;
    store::HttpRequest through = get("http://registry.invalid/v2/");
    through.proxy = {.http = server.url(""), .https = {}, .exceptions = "other.invalid,.nearby"};
    CHECK(body_of(*client.send(std::move(through), {})) == "GET http://registry.invalid/v2/ HTTP/1.1");
    for (const char* exceptions : {"127.0.0.1", "x, 127.0.0.1", "*"}) {
        CAPTURE(exceptions);
        store::HttpRequest direct = get(server.url("/v2/"));
        direct.proxy = {.http = "http://proxy.invalid", .https = {}, .exceptions = exceptions};
        CHECK(body_of(*client.send(std::move(direct), {})) == "GET /v2/ HTTP/1.1");
    }
}
