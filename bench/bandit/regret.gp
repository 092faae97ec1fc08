# The regret curves of one problem with their 95 % intervals and the bound of Lai and Robbins, up to
# the regret `top`:
# gnuplot -e "data='regret.csv'; problem='bernoulli2'; top=150; image='regret.png'" bench/bandit/regret.gp
set datafile separator comma
set terminal pngcairo size 1000,600
set output image
set title problem
set logscale x
set yrange [0:top]
set xlabel "plays"
set ylabel "mean regret"
set key outside right
set grid
rows = "< awk -F, '$1 == \"".problem."\"' ".data
names = system("awk -F, '$1 == \"".problem."\" && !seen[$2]++ {gsub(\" \", \"_\", $2); print $2}' ".data)
row(name) = rows." | awk -F, 'BEGIN {OFS = FS} {gsub(\" \", \"_\", $2)} $2 == \"".name."\"'"
pretty(name) = system("echo ".name." | tr _ ' '")
plot for [i = 1:words(names)] row(word(names, i)) using 3:4:($4-$5):($4+$5) with yerrorlines \
     linetype i dashtype 1+i/9 pointsize 0.6 title pretty(word(names, i)), \
     row(word(names, 1)) using 3:6 with lines linewidth 3 dashtype 2 linecolor "black" \
     title "Lai-Robbins bound"
