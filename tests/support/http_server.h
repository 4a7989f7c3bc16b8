#pragma once

#include "store/file.h"

#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace lamina::test {

/// An HTTP server on 127.0.0.1 that does as it is told, right or wrong. Each connection has a thread of its own, which
/// hands every request (header and body as they came) to `answer`, until that returns false.
class HttpServer {
public:
    class Connection {
    public:
        explicit Connection(int fd) : fd_(fd) {}
        void send(const std::string& bytes);  ///< Bytes for a peer that is gone are lost.
        /// "HTTP/1.1 STATUS", Content-Length, fields, body.
        void reply(int status, const std::string& body, const std::string& fields = "");

    private:
        int fd_;
    };
    using Answer = std::function<bool(const std::string& request, Connection& connection)>;

    explicit HttpServer(Answer answer);
    ~HttpServer();
    HttpServer(const HttpServer&) = delete;
    HttpServer& operator=(const HttpServer&) = delete;

    std::string url(const std::string& path) const;
    int most_connections() const { return most_; }  ///< At once, so far.

private:
    void accept();
    void serve(int fd);

    const Answer answer_;
    store::UniqueFd listener_;
    int port_ = 0;
    std::atomic<int> open_ = 0;
    std::atomic<int> most_ = 0;
    std::mutex mutex_;  // Guards the next two.
    std::vector<std::thread> threads_;
    std::vector<int> connections_;
    std::thread acceptor_;
};

}  // namespace lamina::test
