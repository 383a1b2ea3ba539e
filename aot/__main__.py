from aot import main

main()
