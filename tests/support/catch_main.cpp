// Catch2 version 2 wants one file with its main(); version 3 brings its own in the library.
#if !__has_include(<catch2/catch_all.hpp>)
#define CATCH_CONFIG_MAIN
#include <catch2/catch.hpp>
#endif
