#include "support/http_server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstdlib>

namespace lamina::test {

namespace {

std::size_t body_bytes_of(const std::string& header) {
    const std::size_t at = header.find("Content-Length: ");
    return at == std::string::npos ? 0 : std::strtoul(header.c_str() + at + 16, nullptr, 10);
}

}  // namespace

void HttpServer::Connection::send(const std::string& bytes) {
    std::size_t sent = 0;
    while (sent < bytes.size()) {
        const ssize_t count = ::send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (count <= 0) return;
        sent += static_cast<std::size_t>(count);
    }
}

void HttpServer::Connection::reply(int status, const std::string& body, const std::string& fields) {
    send("HTTP/1.1 " + std::to_string(status) + " X\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         fields + "\r\n" + body);
}

HttpServer::HttpServer(Answer answer)
    : answer_(std::move(answer)), listener_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto* const generic = reinterpret_cast<sockaddr*>(&address);
    if (::bind(listener_.get(), generic, size) != 0 || ::listen(listener_.get(), 100) != 0 ||
        ::getsockname(listener_.get(), generic, &size) != 0) {
        std::abort();
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { accept(); });
}

HttpServer::~HttpServer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    acceptor_.join();
    {
        const std::lock_guard lock(mutex_);
        for (const int fd : connections_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
    for (const int fd : connections_) ::close(fd);
}

std::string HttpServer::url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
}

void HttpServer::accept() {
    while (true) {
        const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
        if (fd < 0) return;
        const std::lock_guard lock(mutex_);
        connections_.push_back(fd);
        threads_.emplace_back([this, fd] { serve(fd); });
    }
}

void HttpServer::serve(int fd) {
    most_ = std::max(most_.load(), ++open_);
    Connection connection(fd);
    std::string received;
    std::array<char, 65536> piece;
    while (true) {
        const std::size_t end = received.find("\r\n\r\n");
        const std::size_t whole = end == std::string::npos ? 0 : end + 4 + body_bytes_of(received.substr(0, end));
        if (end != std::string::npos && received.size() >= whole) {
            const bool goes_on = answer_(received.substr(0, whole), connection);
            received.erase(0, whole);
            if (!goes_on) break;
            continue;
        }
        const ssize_t count = ::recv(fd, piece.data(), piece.size(), 0);
        if (count <= 0) break;
        received.append(piece.data(), static_cast<std::size_t>(count));
    }
    --open_;
    ::shutdown(fd, SHUT_RDWR);
}

}  // namespace lamina::test
