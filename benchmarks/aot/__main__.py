from benchmarks.aot import main

main()
