#pragma once

#include "store/digest.h"

#include <sqlite3.h>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

/// Owners for SQLite's handles. Knows no table; the SQL is store/index.cpp's.
///
/// Errors: SQLITE_FULL is no_space, CORRUPT and NOTADB corrupt, BUSY and LOCKED busy, IOERR and CANTOPEN unavailable
/// (no_space and quota where the system said so), READONLY read_only, the rest internal. Nothing here is thread-safe.
namespace lamina::store {

/// One connection, exclusive to this process: WAL without a shared-memory file, synchronous=FULL (a committed
/// transaction is on disk), each page checked when it is read (sqlite_pages.h), foreign keys checked, schema not
/// trusted, "defensive" (no SQL can damage the file).
class Database {
public:
    static Database open(const std::string& path);  ///< Creates the file when missing, mode 0600.
    void execute(const char* sql);                  ///< One or more statements without parameters or results.
    const std::string& path() const noexcept { return path_; }
    sqlite3* handle() const noexcept { return handle_.get(); }

private:
    struct Close {
        void operator()(sqlite3* handle) const noexcept { ::sqlite3_close_v2(handle); }
    };
    std::unique_ptr<sqlite3, Close> handle_;
    std::string path_;
};

/// Throws the Error for SQLite's `code`: "PATH: STEP: SQLite's words".
[[noreturn]] void throw_sqlite(const Database& database, int code, std::string_view step);

/// The result of one run of a Statement; its end resets the statement and forgets the parameters.
class Rows {
public:
    Rows(const Database& database, sqlite3_stmt* statement) : database_(&database), statement_(statement) {}
    Rows(Rows&& other) noexcept : database_(other.database_), statement_(std::exchange(other.statement_, nullptr)) {}
    Rows& operator=(Rows&&) = delete;
    ~Rows();

    bool next();  ///< False at the end. Columns are those of the row it moved to.
    std::int64_t integer(int column) const;
    std::uint64_t count(int column) const;  ///< corrupt when negative.
    std::string text(int column) const;
    std::vector<std::byte> bytes(int column) const;
    Digest digest(int column) const;  ///< corrupt unless a blob of 32 bytes.

private:
    const Database* database_;
    sqlite3_stmt* statement_;
};

/// A prepared statement. Prepared once, run often, by one borrower at a time. Lives no longer than its Database.
class Statement {
public:
    Statement(const Database& database, std::string_view sql);

    /// Binds the parameters in order (integers, text, digests as blobs, byte spans as blobs), which are copied.
    template <class... Parameters>
    Rows run(const Parameters&... parameters) {
        Rows rows(*database_, statement_.get());
        int position = 0;
        (bind(++position, parameters), ...);
        return rows;
    }
    template <class... Parameters>
    void execute(const Parameters&... parameters) {  ///< For statements that return no rows.
        Rows rows = run(parameters...);
        while (rows.next()) {
        }
    }

private:
    template <std::integral Integer>
    void bind(int position, Integer value) {
        bind_integer(position, static_cast<std::int64_t>(value));
    }
    template <class Role>
    void bind(int position, const RoleDigest<Role>& value) {
        bind(position, std::span<const std::byte>(value.digest.bytes()));
    }
    void bind(int position, std::string_view value);
    void bind(int position, std::span<const std::byte> value);
    void bind_integer(int position, std::int64_t value);
    void check(int code) const;

    struct Finalize {
        void operator()(sqlite3_stmt* statement) const noexcept { ::sqlite3_finalize(statement); }
    };
    const Database* database_;
    std::unique_ptr<sqlite3_stmt, Finalize> statement_;
};

/// BEGIN IMMEDIATE to commit(); rolls back when it ends without. commit() passes the fault hook (file_ops.h) before
/// and after, so that tests can fail or kill on either side.
class Transaction {
public:
    explicit Transaction(Database& database);
    ~Transaction();
    Transaction(const Transaction&) = delete;
    Transaction& operator=(const Transaction&) = delete;
    void commit();
    bool is_open() const noexcept { return is_open_; }  ///< Not committed.

private:
    Database& database_;
    bool is_open_ = true;
};

/// While one lives, a commit waits for no disk: after a power cut the database is whole, but what was committed last
/// may be missing, up to the next commit without it. Not inside of a transaction.
class UnsyncedCommits {
public:
    explicit UnsyncedCommits(Database& database);
    ~UnsyncedCommits();  ///< Ends the process rather than leave later commits unsynced, if there is no memory for it.
    UnsyncedCommits(const UnsyncedCommits&) = delete;
    UnsyncedCommits& operator=(const UnsyncedCommits&) = delete;

private:
    Database& database_;
};

}  // namespace lamina::store
