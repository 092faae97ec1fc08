# The regret curves of one problem with their 95 % intervals and the bound of Lai and Robbins:
# gnuplot -e "data='regret.csv'; problem='bernoulli2'; image='regret.png'" bench/bandit/regret.gp
set datafile separator comma
set terminal pngcairo size 1000,700
set output image
set title problem
set logscale xy
set xlabel "plays"
set ylabel "mean regret"
set key outside right
set grid
rows = "< awk -F, '$1 == \"".problem."\"' ".data
names = system("awk -F, '$1 == \"".problem."\" && !seen[$2]++ {gsub(\" \", \"_\", $2); print $2}' ".data)
row(name) = rows." | awk -F, 'BEGIN {OFS = FS} {gsub(\" \", \"_\", $2)} $2 == \"".name."\"'"
pretty(name) = system("echo ".name." | tr _ ' '")
plot for [name in names] row(name) using 3:4:($4-$5):($4+$5) with yerrorlines title pretty(name), \
     row(word(names, 1)) using 3:6 with lines linewidth 3 dashtype 2 linecolor "black" \
     title "Lai-Robbins bound"
